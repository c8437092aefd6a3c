"""Which rewards a run has: how they are asked for, what is refused, and that every example of the package runs."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

from tests.batch.media import folder
from visalign import batch as batch_package
from visalign.batch import score
from visalign.batch.engine import Setup
from visalign.batch.judging import parse_rewards, with_judges
from visalign.types import InputError

HERE = "tests.batch.test_engine"


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ("jpeg_sise", "Did you mean 'jpeg_size'"),
        ("jpeg_size:qality=3", "takes no parameter 'qality'"),
        (f"{HERE}:Rival", "is pairwise"),
        ("jpeg_size,jpeg_size", "comes twice"),
        ("quality=3", "stands before any reward"),
        ("", "at least one reward"),
    ],
)
def test_wrong_rewards_are_refused_before_anything_is_read(tmp_path, rewards, message):
    folder(tmp_path, 1)
    with pytest.raises(InputError, match=message):
        score(tmp_path, rewards, out=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv.journal.jsonl").exists()


def test_rewards_are_read_with_labels_params_and_dotted_paths():
    asked = parse_rewards(["jpeg_size:quality=80,unit=bits_per_pixel", "m:f:scale=1e-3,clip#a:model=open_clip:B/t,b"])
    assert asked == {
        "jpeg_size": {"quality": 80, "unit": "bits_per_pixel"}, "m:f": {"scale": 0.001},
        "clip#a": {"model": "open_clip:B/t"}, "b": {},
    }  # fmt: skip


def test_shapes_judges_stand_in_unless_a_model_is_named():
    asked = {"clip": {}, "clip#own": {"model": "x"}, "jpeg_size": {}, f"{HERE}:counted": {}}
    found = with_judges(asked, "shapes")
    assert (found["clip"], found["clip#own"]) == ({"model": "shapes/clip"}, {"model": "x"})
    assert found["jpeg_size"] == found[f"{HERE}:counted"] == {}
    with pytest.raises(InputError, match="Did you mean 'shapes'"):
        with_judges(asked, "shape")


@pytest.mark.parametrize("path", sorted(Path(batch_package.__file__).parent.glob("*.py")), ids=lambda p: p.stem)
def test_the_examples_of_the_docstrings_run(path):
    result = doctest.testmod(importlib.import_module(f"visalign.batch.{path.stem}".removesuffix(".__init__")))
    assert result.failed == 0


def test_setup_takes_one_gpu_a_process_or_the_cpu():
    judges = Setup({"jpeg_size": {}}, device="cpu").judges(rank=3)
    assert judges["jpeg_size"].device == torch.device("cpu")
    assert Setup({}, workers=5).threads == 5
