"""Frame samplers and reducers against frame-by-frame scores."""

import doctest

import pytest
import torch

from visalign.rewards import lifting as module
from visalign.rewards.base import Reward, RewardSpec
from visalign.rewards.lifting import Lifted, frame_indices
from visalign.types import Media, Prompts, Scores

PROMPTS = Prompts(("first", "second"))
VIDEO = Media(torch.rand(2, 9, 3, 4, 4, generator=torch.Generator().manual_seed(0)), fps=8)


class Brightness(Reward):
    """Mean pixel, only judged above a floor, and knows which prompt is which."""

    spec = RewardSpec(name="brightness", differentiable=True)

    def __init__(self, floor: float = 0.0):
        self.floor = floor

    def score(self, media, prompts):
        """As with gradients."""
        return self.score_with_grad(media, prompts)

    def score_with_grad(self, media, prompts):
        """Mean plus 1 for the second prompt."""
        mean = media.images.mean((1, 2, 3))
        second = torch.tensor([float(text == "second") for text in prompts])
        return Scores(mean + second, {"mean": mean}, mean >= self.floor)


@pytest.mark.parametrize(
    ("total", "frames", "count", "expected"),
    [
        (9, "uniform", 3, [0, 4, 8]),
        (9, "uniform", 1, [0]),
        (9, "uniform", 9, list(range(9))),
        (9, "uniform", 20, list(range(9))),
        (1, "uniform", 8, [0]),
        (9, "first", 8, [0]),
        (4, "all", 2, [0, 1, 2, 3]),
    ],
)
def test_frame_indices(total, frames, count, expected):
    assert frame_indices(total, frames, count) == expected


@pytest.mark.parametrize("total", [2, 7, 16, 81, 100])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_uniform_frames_differ_and_hold_both_ends(total, count):
    indices = frame_indices(total, "uniform", count)
    assert len(set(indices)) == min(count, total)
    assert (indices[0], indices[-1]) == (0, total - 1)
    assert indices == sorted(indices)


@pytest.mark.parametrize(("reduce", "function"), [("mean", lambda x: x.mean(1)), ("min", lambda x: x.amin(1))])
@pytest.mark.parametrize(("frames", "chosen"), [("all", range(9)), ("first", [0]), ("uniform", [0, 4, 8])])
def test_reducers(reduce, function, frames, chosen):
    scores = Lifted(Brightness(), frames, count=3, reduce=reduce).score(VIDEO, PROMPTS)
    per_frame = VIDEO.pixels[:, list(chosen)].mean((2, 3, 4))
    torch.testing.assert_close(scores.values, function(per_frame) + torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(scores.components["mean"], function(per_frame))


def test_a_video_is_valid_when_all_judged_frames_are():
    pixels = torch.ones(2, 3, 3, 4, 4)
    pixels[1, 2] = 0
    assert Lifted(Brightness(floor=0.5), "all").score(Media(pixels, 8), PROMPTS).valid.tolist() == [True, False]
    assert Lifted(Brightness(floor=0.5), "first").score(Media(pixels, 8), PROMPTS).valid.all()


def test_gradients_reach_the_judged_frames_alone():
    pixels = VIDEO.pixels.clone().requires_grad_()
    Lifted(Brightness(), count=3).score_with_grad(Media(pixels, 8), PROMPTS).values.sum().backward()
    assert pixels.grad.abs().sum((0, 2, 3, 4)).nonzero().flatten().tolist() == [0, 4, 8]


def test_spec_says_video():
    assert Lifted(Brightness()).spec.media == ("image", "video")


def test_examples():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
