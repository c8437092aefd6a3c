"""Image rewards on video: which frames are judged, and how their scores become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from torch import Tensor

from visalign.rewards.base import Reward
from visalign.types import Media, Prompts, Scores

Frames = Literal["uniform", "first", "all"]
Reduce = Literal["mean", "min"]

REDUCERS: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda x: x.mean(1), "min": lambda x: x.amin(1)}


def frame_indices(total: int, frames: Frames = "uniform", count: int = 8) -> list[int]:
    """Which of `total` frames are judged: `count` evenly spaced ones with both ends, the first, or all.

    Example:
        >>> frame_indices(9, "uniform", 3), frame_indices(2), frame_indices(9, "first")
        ([0, 4, 8], [0, 1], [0])
    """
    if frames == "first" or (frames == "uniform" and count == 1):
        return [0]
    if frames == "all" or count >= total:
        return list(range(total))
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


class Lifted(Reward):
    """An image reward that scores video: judged frames one by one, reduced over time.

    A video is valid when all its judged frames are.

    Args:
        reward: the image reward.
        frames: `uniform`, `first` or `all`.
        count: number of frames for `uniform`.
        reduce: `mean`, or `min`: a video is as good as its worst frame.

    Example:
        >>> import torch
        >>> from visalign.rewards.jpeg_size import JpegSize
        >>> Lifted(JpegSize()).score(Media(torch.zeros(2, 5, 3, 8, 8)), Prompts(("a", "b"))).values.shape
        torch.Size([2])
    """

    def __init__(self, reward: Reward, frames: Frames = "uniform", count: int = 8, reduce: Reduce = "mean") -> None:
        self.reward = reward
        self.frames: Frames = frames
        self.count = count
        self.reduce = REDUCERS[reduce]
        self.spec = replace(reward.spec, media=("image", "video"))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B videos."""
        return self._over_time(media, prompts, self.reward.score)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels of the judged frames."""
        return self._over_time(media, prompts, self.reward.score_with_grad)

    def _over_time(self, media: Media, prompts: Prompts, score: Callable[[Media, Prompts], Scores]) -> Scores:
        chosen = frame_indices(media.pixels.shape[1], self.frames, self.count)
        stills = Media.of_images(media.pixels[:, chosen].flatten(0, 1))
        scores = score(stills, prompts.repeat(len(chosen)))
        grid = (len(media), len(chosen))
        components = {k: self.reduce(v.reshape(grid)) for k, v in scores.components.items()}
        return Scores(self.reduce(scores.values.reshape(grid)), components, scores.valid.reshape(grid).all(1))
