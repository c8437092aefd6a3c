"""Image rewards on video: which frames are judged, and how their scores become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import ceil
from random import Random
from typing import Literal

import torch
from torch import Tensor

from visalign.rewards.base import Reward
from visalign.types import InputError, Media, Prompts, Scores

Frames = Literal["uniform", "first", "all", "segment"]
Reduce = Literal["mean", "min", "top", "attenuated"]
BEST_SHARE = 0.3
LEAST, MOST = 4, 768


def uniform(total: int, count: int, seed: int = 0) -> list[int]:
    """`count` evenly spaced frames with both ends; one frame is the first."""
    if count == 1:
        return [0]
    return list(range(total)) if count >= total else [round(i * (total - 1) / (count - 1)) for i in range(count)]


def segment(total: int, count: int, seed: int = 0) -> list[int]:
    """One frame at random of each of `count` equal segments: the sampling of temporal segment networks (1608.00859).

    Example:
        >>> [low <= frame < low + 4 for frame, low in zip(segment(16, 4, seed=1), (0, 4, 8, 12))]
        [True, True, True, True]
    """
    random, count = Random(seed), min(count, total)
    edges = [i * total // count for i in range(count + 1)]
    return [random.randrange(low, high) for low, high in pairwise(edges)]


SAMPLERS: dict[str, Callable[[int, int, int], list[int]]] = {
    "uniform": uniform,
    "first": lambda total, count, seed: [0],
    "all": lambda total, count, seed: list(range(total)),
    "segment": segment,
}


def frame_indices(total: int, frames: Frames = "uniform", count: int = 8, seed: int = 0) -> list[int]:
    """Which of `total` frames are judged.

    Args:
        total: frames of the video.
        frames: `uniform` (both ends), `first`, `all`, or `segment` (one at random of each of `count` segments).
        count: number of frames for `uniform` and `segment`.
        seed: of `segment`; the same seed takes the same frames.

    Example:
        >>> frame_indices(9, "uniform", 3), frame_indices(2), frame_indices(9, "first")
        ([0, 4, 8], [0, 1], [0])
    """
    return SAMPLERS[frames](total, count, seed)


def indices_at(total: int, rate: float, fps: float = 2.0) -> list[int]:
    """Frames at `fps` of a video of `rate` frames a second, as the readers of Qwen-VL take them.

    An even number from 4 to 768, as far as there are so many, evenly spaced with both ends.

    Raises:
        InputError: the rate is not known, or there is one frame only.

    Example:
        >>> indices_at(33, 16.0), indices_at(81, 16.0)
        ([0, 11, 21, 32], [0, 9, 18, 27, 36, 44, 53, 62, 71, 80])
    """
    if rate <= 0 or total < 2:
        raise InputError(
            f"{total} frames at {rate:g} frames a second came, but this reward judges videos of two frames or more "
            f"whose rate is known; give Media(pixels, fps=16), or use an image reward"
        )
    wanted = min(max(total / rate * fps, LEAST), min(MOST, total) // 2 * 2)
    return torch.linspace(0, total - 1, round(wanted / 2) * 2).round().long().tolist()


def attenuation(indices: Tensor, total: int, decay: float = 1.0) -> Tensor:
    """Weights exp(−decay·|frame − total // 2|), renormalised to sum 1 over the judged frames, (B, K).

    The temporally attenuated reward of InstructVideo (2312.12490, decay 1), which leaves out the renormalisation: its
    scores then shrink with the number of frames.

    Example:
        >>> attenuation(torch.tensor([[4, 8, 12]]), 16, decay=0.25)
        tensor([[0.2119, 0.5761, 0.2119]])
    """
    return torch.softmax(-decay * (indices - total // 2).abs().float(), dim=1)


def best(values: Tensor, share: float = BEST_SHARE) -> Tensor:
    """Mean of the best `share` of the frames, at least one, (B, K) → (B,)."""
    return values.topk(max(1, ceil(share * values.shape[1])), dim=1).values.mean(1)


REDUCERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda values, weights: values.mean(1),
    "min": lambda values, weights: values.amin(1),
    "top": lambda values, weights: best(values),
    "attenuated": lambda values, weights: (values * weights).sum(1),
}


class Lifted(Reward):
    """An image reward that scores video: judged frames one by one, reduced over time.

    A video is valid when all its judged frames are. `segment` draws by the prompt's id, so that all videos of a prompt
    are judged at the same times, at every call.

    Args:
        reward: the image reward.
        frames: `uniform`, `first`, `all` or `segment`.
        count: number of frames for `uniform` and `segment`.
        reduce: `mean`; `min`: a video is as good as its worst frame; `top`: mean of the best 30 % of its frames;
            `attenuated`: mean that counts frames the less, the further they are from the middle.
        decay: of `attenuated`, for each frame of distance.

    Raises:
        InputError: `frames` or `reduce` is none of those.

    Example:
        >>> import torch
        >>> from visalign.rewards.jpeg_size import JpegSize
        >>> Lifted(JpegSize()).score(Media(torch.zeros(2, 5, 3, 8, 8)), Prompts(("a", "b"))).values.shape
        torch.Size([2])
    """

    def __init__(
        self,
        reward: Reward,
        frames: Frames = "uniform",
        count: int = 8,
        reduce: Reduce = "mean",
        decay: float = 1.0,
    ) -> None:
        if frames not in SAMPLERS or reduce not in REDUCERS:
            raise InputError(
                f"frames {frames!r} and reduce {reduce!r} came; allowed are frames: {' | '.join(SAMPLERS)} and "
                f"reduce: {' | '.join(REDUCERS)}"
            )
        self.reward = reward
        self.frames: Frames = frames
        self.count = count
        self.reduce = REDUCERS[reduce]
        self.decay = decay
        self.spec = replace(reward.spec, media=("image", "video"))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B videos."""
        return self._over_time(media, prompts, self.reward.score)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels of the judged frames."""
        return self._over_time(media, prompts, self.reward.score_with_grad)

    def _over_time(self, media: Media, prompts: Prompts, score: Callable[[Media, Prompts], Scores]) -> Scores:
        total = media.pixels.shape[1]
        chosen = torch.tensor([frame_indices(total, self.frames, self.count, seed) for seed in prompts.ids])  # (B, K)
        rows = torch.arange(len(media))[:, None]
        stills = Media.of_images(media.pixels[rows, chosen].flatten(0, 1))
        scores = score(stills, prompts.repeat(chosen.shape[1]))
        weights = attenuation(chosen, total, self.decay).to(scores.values.device)
        components = {k: self.reduce(v.reshape(chosen.shape), weights) for k, v in scores.components.items()}
        valid = scores.valid.reshape(chosen.shape).all(1)
        return Scores(self.reduce(scores.values.reshape(chosen.shape), weights), components, valid)
