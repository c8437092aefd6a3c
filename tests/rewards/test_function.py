"""A user's function gets what it names, and its answers become scores."""

import numpy as np
import pytest
import torch

from visalign.rewards import function as module
from visalign.rewards.function import FunctionReward
from visalign.types import InputError, Media, Prompts

MEDIA = Media(torch.ones(3, 2, 3, 4, 6))
PROMPTS = Prompts(("a", "b", "c"), ({"target": "x", "n": 1}, {"target": "y"}, {"target": "z", "n": 3}))


def seen_by(function, params=None):
    """What a function is called with."""
    calls = []

    def record(images, prompts, **columns):
        calls.append((images, prompts, columns))
        return [0] * len(images)

    record.__signature__ = module.inspect.signature(function)
    FunctionReward(record, params=params).score(MEDIA, PROMPTS)
    return calls[0]


def test_images_and_prompts():
    images, prompts, columns = seen_by(lambda images, prompts: 0)
    assert [image.size for image in images] == [(6, 4)] * 3
    assert images[0].getpixel((0, 0)) == (255, 255, 255)
    assert prompts == ["a", "b", "c"]
    assert columns == {}


@pytest.mark.parametrize(
    ("function", "columns"),
    [
        (lambda images, prompts, target: 0, {"target": ["x", "y", "z"]}),
        (lambda images, prompts, *, n: 0, {"n": [1, None, 3]}),
        (lambda images, prompts, **columns: 0, {"target": ["x", "y", "z"], "n": [1, None, 3]}),
        (lambda images, prompts, target, **rest: 0, {"target": ["x", "y", "z"], "n": [1, None, 3]}),
        (lambda images, prompts, seed=3: 0, {}),
        (lambda images, prompts, target="q": 0, {"target": ["x", "y", "z"]}),
    ],
)
def test_only_the_columns_that_are_named(function, columns):
    assert seen_by(function)[2] == columns


def test_params_go_before_columns():
    _, _, columns = seen_by(lambda images, prompts, target, n: 0, {"n": 7})
    assert columns == {"target": ["x", "y", "z"], "n": 7}


def test_a_column_that_no_prompt_has():
    def colour(images, prompts, color):
        return [0, 0, 0]

    with pytest.raises(InputError) as caught:
        FunctionReward(colour, "my:colour").score(MEDIA, PROMPTS)
    assert "reward 'my:colour' asks for the column 'color', which no prompt has; columns there are: target, n." in str(
        caught.value
    )


@pytest.mark.parametrize(
    "answer",
    [[1, 2.5, 0], (1, 2.5, 0), np.array([1, 2.5, 0]), torch.tensor([1, 2.5, 0]), iter([1, 2.5, 0])],
    ids=["list", "tuple", "numpy", "torch", "iterator"],
)
def test_numbers_of_any_kind(answer):
    scores = FunctionReward(lambda images, prompts: answer).score(MEDIA, PROMPTS)
    assert scores.values.tolist() == [1.0, 2.5, 0.0]
    assert scores.values.dtype == torch.float32
    assert scores.valid.all()


def test_none_is_invalid_and_not_zero():
    scores = FunctionReward(lambda images, prompts: [1, None, 0]).score(MEDIA, PROMPTS)
    assert scores.valid.tolist() == [True, False, True]


def test_the_function_cannot_reach_the_pixels():
    def paint(images, prompts):
        for image in images:
            image.paste((0, 0, 0), (0, 0, 6, 4))
        return [0] * len(images)

    FunctionReward(paint).score(MEDIA, PROMPTS)
    assert (MEDIA.pixels == 1).all()
