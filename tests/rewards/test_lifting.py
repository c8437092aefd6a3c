"""Frame samplers and reducers against frame-by-frame scores."""

import pytest
import torch

from visalign.rewards.base import Reward, RewardSpec
from visalign.rewards.lifting import Lifted, attenuation, frame_indices, indices_at
from visalign.types import InputError, Media, Prompts, Scores

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


@pytest.mark.parametrize(("total", "count"), [(16, 4), (9, 4), (81, 8), (3, 8), (1, 4)])
def test_segments_give_one_frame_each_and_all_frames_in_turn(total, count):
    drawn = [frame_indices(total, "segment", count, seed) for seed in range(300)]
    segments = min(count, total)
    edges = [i * total // segments for i in range(segments + 1)]
    for indices in drawn:
        assert len(indices) == segments
        assert all(low <= frame < high for low, frame, high in zip(edges, indices, edges[1:]))
    assert {frame for indices in drawn for frame in indices} == set(range(total))
    assert drawn == [frame_indices(total, "segment", count, seed) for seed in range(300)]


def test_segments_are_drawn_by_prompt_whatever_the_batch():
    lifted = Lifted(Brightness(), "segment", count=3)
    ramp = torch.arange(9.0).reshape(1, 9, 1, 1, 1).expand(1, 9, 3, 4, 4)
    names = Prompts(tuple(f"prompt {i}" for i in range(20)))
    together = lifted.score(Media(ramp.expand(20, -1, -1, -1, -1), 8), names).values
    alone = torch.cat([lifted.score(Media(ramp, 8), names.take([i])).values for i in range(20)])
    assert torch.equal(together, alone)
    assert len(set(together.tolist())) > 3
    chosen = [frame_indices(9, "segment", 3, seed) for seed in names.ids]
    torch.testing.assert_close(together, torch.tensor(chosen).float().mean(1))


@pytest.mark.parametrize(("frames", "kept"), [(3, 1), (4, 2), (9, 3), (10, 3), (1, 1)])
def test_top_is_the_mean_of_the_best_three_in_ten(frames, kept):
    video = Media(VIDEO.pixels.repeat(1, 2, 1, 1, 1)[:, :frames], 8)
    scores = Lifted(Brightness(), "all", reduce="top").score(video, PROMPTS)
    ordered = video.pixels.mean((2, 3, 4)).sort(1, descending=True).values
    torch.testing.assert_close(scores.components["mean"], ordered[:, :kept].mean(1))
    torch.testing.assert_close(scores.values, ordered[:, :kept].mean(1) + torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(("frames", "decay"), [(9, 1.0), (8, 1.0), (9, 0.1), (9, 0.0)])
def test_attenuated_counts_the_middle_most_and_stays_on_the_scale(frames, decay):
    video = Media(VIDEO.pixels[:, :frames], 8)
    scores = Lifted(Brightness(), "all", reduce="attenuated", decay=decay).score(video, PROMPTS)
    weights = torch.tensor([2.718281828 ** (-decay * abs(g - frames // 2)) for g in range(frames)])
    per_frame = video.pixels.mean((2, 3, 4))
    torch.testing.assert_close(scores.components["mean"], (per_frame * weights).sum(1) / weights.sum())
    flat = Lifted(Brightness(), "segment", 4, "attenuated", decay).score(Media(torch.ones(2, 16, 3, 4, 4), 8), PROMPTS)
    torch.testing.assert_close(flat.components["mean"], torch.ones(2))


def test_instructvideo_without_renormalisation_would_shrink_the_score():
    centres = torch.tensor([[2, 6, 10, 14]])
    raw = (-(centres - 8).abs().float()).exp()
    assert raw.mean().item() == pytest.approx(0.069, abs=5e-4)
    torch.testing.assert_close(attenuation(centres, 16), raw / raw.sum())


@pytest.mark.parametrize(
    ("total", "rate", "expected"),
    [
        (16, 8.0, [0, 5, 10, 15]),  # two seconds: four frames
        (49, 8.0, [round(i * 48 / 11) for i in range(12)]),
        (5, 30.0, [0, 1, 3, 4]),  # never fewer than four …
        (3, 30.0, [0, 2]),  # … as far as there are so many, in even numbers
        (4000, 2.0, torch.linspace(0, 3999, 768).round().long().tolist()),
    ],
)
def test_frames_by_time(total, rate, expected):
    assert indices_at(total, rate) == expected


@pytest.mark.parametrize(("total", "rate"), [(1, 8.0), (9, 0.0)])
def test_frames_by_time_need_a_video_with_a_rate(total, rate):
    with pytest.raises(InputError, match="two frames or more whose rate is known"):
        indices_at(total, rate)


@pytest.mark.parametrize("wrong", [{"frames": "some"}, {"reduce": "median"}])
def test_unknown_words_are_refused(wrong):
    with pytest.raises(InputError, match=r"frames: uniform \| first \| all \| segment"):
        Lifted(Brightness(), **wrong)


def test_spec_says_video():
    assert Lifted(Brightness()).spec.media == ("image", "video")
