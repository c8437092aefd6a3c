"""The differentiable stand-in for the verifier: what it sees, and what it does not."""

from random import Random

import pytest
import torch

from visalign.rewards.check import check_reward
from visalign.rewards.palette import AREA, Palette, coverage
from visalign.shapes.render import render
from visalign.shapes.scenes import COLORS, Object, Scene
from visalign.types import InputError, Media, Prompts


def square(color, x=0.5):
    return Object(shape="square", color=color, x=x, y=0.5, radius=0.15)


def row(*clauses):
    return {"tag": "colors", "include": [dict(zip(("class", "count", "color"), c, strict=False)) for c in clauses]}


def prompts(*rows):
    return Prompts(tuple("a prompt" for _ in rows), rows)


def test_coverage_is_the_painted_share():
    images = render([Scene((square(c),)) for c in COLORS], 64, seed=0)
    found = coverage(images)
    area = (2**0.5 * 0.15) ** 2
    assert torch.allclose(found.diagonal(), torch.full((len(COLORS),), area), atol=0.015)
    assert float((found - torch.diag(found.diagonal())).max()) < 0.012


def test_the_right_colour_scores_above_the_wrong_one_and_nothing():
    images = render([Scene((square("red"),)), Scene((square("blue"),)), Scene(())], 64, seed=0)
    asked = prompts(*[row(("square", 1, "red"))] * 3)
    right, wrong, empty = Palette().score(Media.of_images(images), asked).values.tolist()
    assert right > empty > wrong


def test_a_prompt_without_colours_cannot_be_judged():
    scores = Palette().score(Media.of_images(torch.ones(1, 3, 32, 32)), prompts(row(("square", 2))))
    assert scores.valid.tolist() == [False]


def test_contract():
    images = render(
        [Scene((square("red", 0.3), square("blue", 0.7))), Scene((square("green"),))], 32, seed=Random(0).randrange(9)
    )
    check_reward(Palette(), Media.of_images(images), prompts(row(("square", 1, "red")), row(("star", 2, "green"))))


def test_prompts_need_the_metadata():
    with pytest.raises(InputError, match="include"):
        Palette().score(Media.of_images(torch.ones(1, 3, 32, 32)), Prompts(("a red square",)))


def test_areas_fall_with_the_number_of_objects():
    assert list(AREA) == sorted(AREA, reverse=True)
