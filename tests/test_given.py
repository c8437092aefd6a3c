"""Methods that learn from given media, on a tiny real pipeline."""

import json
import math

import pytest
import torch

from tests.test_training import rows
from visalign.media_io import write_media
from visalign.training import train
from visalign.types import InputError, Media

COLOURS = {"a red circle": (1.0, 0.0, 0.0), "two blue squares": (0.0, 0.0, 1.0), "a green star": (0.0, 0.6, 0.0)}


def plain(colour):
    return Media.of_images(torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 32, 32).contiguous())


@pytest.fixture
def captioned(tmp_path):
    folder = tmp_path / "captioned"
    folder.mkdir()
    for number, (text, colour) in enumerate(COLOURS.items()):
        write_media(folder / f"{number}", plain(colour), {})
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    lines = []
    for number, (text, colour) in enumerate(COLOURS.items()):
        chosen = write_media(folder / f"{number}_chosen", plain(colour), {})
        rejected = write_media(folder / f"{number}_rejected", plain((0.5, 0.5, 0.5)), {})
        lines.append(json.dumps({"prompt": text, "chosen": chosen.name, "rejected": rejected.name}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder / "pairs.jsonl"


def test_supervised_fine_tuning_lowers_its_loss(small_config, captioned):
    train_section = {"iterations": 30, "prompts_per_iteration": 3, "updates": 1}
    config = small_config(
        {"name": "sft", "times": 4}, data=str(captioned), train=train_section, optimizer={"lr": 0.02},
        evaluation={"every": 30, "images": 2},
    )  # fmt: skip
    losses = [r["loss"] for r in rows(train(config).run, "train")]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_dpo_starts_at_log_two_and_learns_the_preference(small_config, pairs):
    train_section = {"iterations": 30, "prompts_per_iteration": 3, "updates": 1, "micro_batch": 6}
    config = small_config(
        {"name": "dpo", "beta": 50.0, "times": 4}, data=str(pairs), train=train_section, optimizer={"lr": 0.02},
        evaluation={"every": 30, "images": 2},
    )  # fmt: skip
    found = rows(train(config).run, "train")
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert found[-1]["implicit_accuracy"] > 0.9
    assert found[-1]["loss"] < 0.5


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_data_must_be_named(method, small_config):
    with pytest.raises(InputError, match="set data"):
        train(small_config(method))
