"""What a reward is: a pure function of media and prompts, with its facts as data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from visalign.types import InputError, Media, Prompts, Scores


@dataclass(frozen=True)
class Weights:
    """A weight file of a reward."""

    repo: str
    file: str
    licence: str


@dataclass(frozen=True)
class RewardSpec:
    """The facts of a reward, as data.

    Attributes:
        name: short name.
        media: kinds that it scores; an image reward is lifted to video by a frame sampler.
        inputs: what it reads besides the pixels: `prompt`, `reference`, or names of columns.
        kind: `pointwise`, `pairwise` or `groupwise`.
        differentiable: scores carry gradients to the pixels in `score_with_grad`.
        range: lowest and highest value, None where unbounded.
        weights: files that it loads; empty for plain functions.
        memory_gb: of the weights as a GPU holds them: vision-language models in bfloat16, all others in float32.
        paper: where it comes from.
        extra: the optional dependency group that it needs, or empty.
        tiny: the shipped model that stands in for the real one on the built-in world (`model: shapes/clip`), or empty.
    """

    name: str
    media: tuple[Literal["image", "video"], ...] = ("image",)
    inputs: tuple[str, ...] = ()
    kind: Literal["pointwise", "pairwise", "groupwise"] = "pointwise"
    differentiable: bool = False
    range: tuple[float | None, float | None] = (None, None)
    weights: tuple[Weights, ...] = ()
    memory_gb: float = 0.0
    paper: str = ""
    extra: str = ""
    tiny: str = ""


class Reward(ABC):
    """A reward: greater is better, float32, one number a row, invalid where it could not judge.

    A final class holds weights and calls pure functions. It sees media and prompts; never a trainer or a config.
    """

    spec: RewardSpec

    def prepare(self, media: Media) -> Media:
        """The part of preprocessing that can be done beforehand, on the CPU, one medium at a time.

        Scores do not change by it: score(prepare(m)) = score(m). Rewards that resize to a square do it here, so that
        files of any size share a batch.
        """
        return media

    @abstractmethod
    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B media for B prompts, without gradients."""

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same scores with gradients to the pixels.

        Raises:
            InputError: the reward is not differentiable.
        """
        raise InputError(
            f"reward {self.spec.name!r} has no gradient; use it with grpo, nft or another method that needs scores "
            f"only, or choose a differentiable reward: visalign list rewards"
        )
