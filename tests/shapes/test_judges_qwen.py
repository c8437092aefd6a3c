"""`shapes/hpsv3` and `shapes/videoalign`: videos, losses, and folders that the rewards load without the hub."""

import json
import math
from itertools import pairwise
from random import Random

import pytest
import torch

from tests.shapes.tiny_judges import QWENS, fall, ignore, pictures
from visalign import registry
from visalign.rewards.base import Weights
from visalign.rewards.token_head import weights_of
from visalign.shapes.judges import qwen
from visalign.shapes.judges.data import draw_scenes
from visalign.shapes.judges.training import train_recipe
from visalign.shapes.reading import read_objects
from visalign.shapes.scenes import drift
from visalign.types import InputError, Media, Prompts


@pytest.fixture(scope="module")
def folders(tmp_path_factory, shaken_clip):
    made = {}
    for name, recipe in QWENS.items():
        made[name] = tmp_path_factory.mktemp(name)
        train_recipe(recipe, made[name], shaken_clip, resume=False, progress=ignore)
    return made


def test_a_drifting_scene_moves_as_a_whole_inside_the_picture():
    rng = Random(0)
    for scene in draw_scenes(40, rng)[1]:
        frames = drift(scene, 4, rng)
        assert frames[0] == scene
        steps = [
            (round(b.x - a.x, 6), round(b.y - a.y, 6))
            for one, two in pairwise(frames)
            for a, b in zip(one.objects, two.objects, strict=True)
        ]
        assert len(set(steps)) <= 2  # one step, but for the last digit
        assert all(
            o.radius - 1e-9 <= min(o.x, o.y) and max(o.x, o.y) <= 1 - o.radius + 1e-9 for o in frames[-1].objects
        )


def test_all_frames_of_a_smooth_video_show_its_caption():
    clips = qwen.draw_clips(QWENS["videoalign"], 0)
    first, last = (read_objects(clips.smooth[:, i]) for i in (0, 3))
    assert torch.equal(first.shape.sort().values, last.shape.sort().values)
    assert not torch.equal(clips.smooth[:, 0], clips.smooth[:, 3])


def test_equal_ratings_lose_log_two_and_doubt_softens():
    equal, sure = torch.zeros(2, 2), torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    assert float(qwen.ranking_loss(equal, equal)) == pytest.approx(math.log(2), abs=1e-6)
    doubtful = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    losses = [float(qwen.ranking_loss(better, equal)) for better in (sure, doubtful, equal)]
    assert losses == sorted(losses)
    chance = 0.5 * math.erfc(-2 / math.sqrt(2) / math.sqrt(2))
    assert losses[0] == pytest.approx(-math.log(chance), abs=1e-5)


@pytest.mark.parametrize("name", sorted(QWENS))
def test_the_loss_falls_on_one_batch(name, tmp_path, teacher):
    recipe, loss = QWENS[name], qwen.LOSSES[name]
    learner = qwen.Learner(recipe, tmp_path, 16)
    assert fall(learner, recipe, lambda: loss(learner, 0, teacher, recipe), steps=15, rate=5e-3) > 0.1


def test_wrong_pictures_are_easy_at_first():
    recipe = QWENS["hpsv3"].model_copy(update={"easy_steps": 1})
    rows = torch.arange(8)
    found = [qwen.rivals(rows, step, recipe) for step in range(2)]
    assert [rivals.tolist() for rivals in found] == [[4, 5, 6, 7, 0, 1, 2, 3], [1, 0, 3, 2, 5, 4, 7, 6]]
    assert all(torch.equal(qwen.rivals(rivals, step, recipe), rows) for step, rivals in enumerate(found))


def test_the_rewards_load_the_folders_alone(folders):
    _, _, pixels = pictures(2)
    prompts = Prompts(("a red star", "two blue circles"))
    still = registry.load("rewards", "hpsv3")(model=str(folders["hpsv3"])).score(Media.of_images(pixels), prompts)
    assert set(still.components) == {"sigma"}
    assert still.valid.all()
    video = Media(pixels[:, None].expand(-1, 8, -1, -1, -1), fps=8.0)
    moving = registry.load("rewards", "videoalign")(model=str(folders["videoalign"])).score(video, prompts)
    assert set(moving.components) == {"VQ", "MQ", "TA"}
    assert not torch.equal(*moving.components["TA"])


def test_pictures_keep_the_size_that_the_processor_allows(folders):
    reward = registry.load("rewards", "hpsv3")(model=str(folders["hpsv3"]))
    assert reward.net.fitted(torch.rand(1, 3, 64, 64), 200704, 200704).shape[-2:] == (64, 64)
    assert reward.net.fitted(torch.rand(1, 3, 100, 50), 200704, 200704).shape[-2:] == (88, 40)


def test_a_base_model_without_the_head_is_not_taken_for_the_weights(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    weights = Weights("no-such/repository", "weights.safetensors", "")
    assert weights_of(str(folders["hpsv3"]), weights, None) == folders["hpsv3"] / "model.safetensors"
    with pytest.raises(InputError, match="cannot be downloaded"):
        weights_of(str(tmp_path), weights, None)


def test_what_was_measured(folders):
    tables = {name: json.loads((folder / "measured.json").read_text()) for name, folder in folders.items()}
    assert "preferred" in tables["hpsv3"]["renders, two of a caption"]
    assert {"damaged renders, quality", "samples, alignment", "two videos, motion"} <= set(tables["videoalign"])
