"""The shapes reward on rendered truth and on rendered lies."""

from random import Random

import pytest
import torch

from visalign.rewards.shapes import ShapesReward
from visalign.shapes.render import render
from visalign.shapes.scenes import CATEGORIES, Corruption, corrupt, describe, place
from visalign.types import InputError, Media, Prompts

LIES = Corruption(count=1.0, relation=1.0, swap=1.0, presence=1.0)


def world(lie=False):
    """Three pictures of each category with their prompts."""
    rng = Random(3)
    described = [describe(category, rng) for category in CATEGORIES for _ in range(3)]
    rows = [d.metadata() for d in described]
    shown = [corrupt(d, rng, LIES) for d in described] if lie else described
    prompts = Prompts(tuple(row.pop("prompt") for row in rows), tuple(rows))
    return Media.of_images(render([place(d, rng) for d in shown], size=64, seed=0)), prompts


def test_truth_scores_one():
    scores = ShapesReward().score(*world())
    assert (scores.values == 1).all()
    assert (scores.components["strict"] == 1).all()
    assert (scores.components["graded"] == 1).all()
    assert scores.valid.all()


@pytest.mark.parametrize("graded", [0.0, 0.25, 0.5, 1.0])
def test_value_mixes_strict_and_graded_credit(graded):
    scores = ShapesReward(graded=graded).score(*world(lie=True))
    strict, credit = scores.components["strict"], scores.components["graded"]
    torch.testing.assert_close(scores.values, (1 - graded) * strict + graded * credit)
    assert strict.unique().tolist() == [0.0, 1.0]
    assert ((credit > 0) & (credit < 1)).any()


@pytest.mark.parametrize("category", CATEGORIES)
def test_rows_of_other_categories_are_invalid(category):
    media, prompts = world()
    scores = ShapesReward(category=category).score(media, prompts)
    assert scores.valid.tolist() == [row["tag"] == category for row in prompts.columns]


def test_first_frame_of_a_video():
    media, prompts = world()
    video = Media(torch.cat([media.pixels, torch.ones_like(media.pixels)], dim=1), fps=8)
    assert (ShapesReward().score(video, prompts).values == 1).all()


def test_exclude_may_be_missing():
    media, prompts = world()
    columns = tuple({k: v for k, v in row.items() if k != "exclude"} for row in prompts.columns)
    assert (ShapesReward().score(media, Prompts(prompts.texts, columns)).values == 1).all()


def test_prompts_without_metadata():
    with pytest.raises(InputError) as caught:
        ShapesReward().score(Media(torch.ones(1, 1, 3, 64, 64)), Prompts(("a circle",), ({"tag": "colors"},)))
    assert (
        "needs the columns tag and include (GenEval's fields), but the prompt 'a circle' has tag; use prompts of"
        in str(caught.value)
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"graded": 1.5}, "takes graded in [0, 1], but 1.5 came"),
        ({"category": "counts"}, "has no category 'counts'; write"),
    ],
)
def test_wrong_params(params, message):
    with pytest.raises(InputError) as caught:
        ShapesReward(**params)
    assert message in str(caught.value)
