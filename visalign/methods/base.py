"""What a method is: the experience it needs and a loss. It has no loop, no I/O, no device code.

Five families of experience, five abstract classes; a final method fills one in:

    TrajectoryMethod      stored stochastic steps with log-probabilities and advantages (GRPO and its relatives)
    SampleMethod          clean samples with advantages, corrupted again at chosen levels (NFT, AWM, …)
    DifferentiableMethod  samples with gradients, and a differentiable reward (DRaFT, AlignProp, …)
    PairMethod            given pairs, corrupted at a shared level with shared noise (DPO family)
    MediaMethod           given media to corrupt (supervised fine-tuning, …)

The loop draws the experience, evaluates the denoiser under the current weights (with gradients) and under every policy
in `needs` (without), and hands a view of one step to `loss`, which returns one number a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from visalign import process
from visalign.kernels import Transition, reduce
from visalign.section import Section
from visalign.types import InputError, Levels, Scores, Step


@dataclass(frozen=True)
class Loss:
    """A loss before reduction over rows.

    Attributes:
        rows: (B,) float32 with gradient; the loop averages over the rows and steps of an update.
        metrics: name → (B,) or () tensors without gradient, averaged for the log.
    """

    rows: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ReverseView:
    """One stored stochastic step, seen by the loss of a trajectory method.

    Attributes:
        step: what the rollout recorded.
        transition: the same step under the current weights.
        others: the same step under the policies named in `needs`.
        output: the denoiser's output, (B, *S); `other_outputs` holds those of the others.
        advantages: (B,).
        groups: (B,) ids of the rows' groups.
        weight: the step's weight, mean 1 over the steps that may be trained.
        dt: σ − σ' of the step on the flow path.
    """

    step: Step
    transition: Transition
    others: Mapping[str, Transition]
    output: Tensor
    other_outputs: Mapping[str, Tensor]
    advantages: Tensor
    groups: Tensor
    weight: float
    dt: float


@dataclass(frozen=True)
class ForwardView:
    """Clean samples corrupted at one level, seen by the loss of the forward families.

    Attributes:
        index: position of the level in `levels`.
        x0: clean samples (B, *S); eps: the noise; x: the corrupted state.
        output: the denoiser's output with gradient, (B, *S); `others` holds those of the policies named in `needs`.
        advantages: (B,); for pairs +1 marks the chosen row and −1 the rejected one.
        groups: (B,) ids; the two rows of a pair share theirs, and their noise.
    """

    levels: Levels
    index: int
    x0: Tensor
    eps: Tensor
    x: Tensor
    output: Tensor
    others: Mapping[str, Tensor]
    advantages: Tensor
    groups: Tensor

    def error(self, output: Tensor) -> Tensor:
        """Mean squared error of an output in the denoiser's own prediction space, (B,) float32."""
        a, s = self.levels.a[self.index].float(), self.levels.s[self.index].float()
        goal = process.target(self.x0, self.eps, a, s, self.levels.prediction)
        return reduce((output.float() - goal).square(), "mean")

    def clean(self, output: Tensor) -> Tensor:
        """The clean-sample prediction x̂0 of an output, (B, *S) float32."""
        a, s = self.levels.a[self.index].float(), self.levels.s[self.index].float()
        return process.x0_eps(self.x, output, a, s, self.levels.prediction, self.levels.scaled_input)[0]


class Method(ABC):
    """The common ground of all methods."""

    Config: ClassVar[type[Section]]
    needs: frozenset[str] = frozenset()
    """Other policies whose outputs the loss reads: `reference` (adapters off), `old`, `ema`."""
    whole_groups: ClassVar[bool] = False
    """The loss couples the rows of a group, so that a group must stand in one micro-batch."""

    def old_decay(self, updates: int) -> float:
        """Share of the old snapshot that is kept after an iteration; 0 copies the current weights."""
        return 0.0


class TrajectoryMethod(Method):
    """Learns from stored stochastic steps."""

    keep_mean: bool = False
    reduction: Literal["mean", "sum"] = "mean"
    temper: bool = False
    step_weight: str = "none"

    @abstractmethod
    def loss(self, view: ReverseView) -> Loss:
        """One number a row for one step."""


class SampleMethod(Method):
    """Learns from clean samples with advantages."""

    @abstractmethod
    def times(self, levels: Levels, generator: torch.Generator) -> Sequence[int]:
        """The levels at which each micro-batch is corrupted."""

    @abstractmethod
    def loss(self, view: ForwardView) -> Loss:
        """One number a row for one level."""


class PairMethod(Method):
    """Learns from given pairs; rows stand as (chosen, rejected, chosen, rejected, …)."""

    whole_groups = True
    num_levels: int = 50

    @abstractmethod
    def times(self, levels: Levels, generator: torch.Generator) -> Sequence[int]:
        """The levels at which each micro-batch is corrupted."""

    @abstractmethod
    def loss(self, view: ForwardView) -> Loss:
        """One number a row for one level."""


class MediaMethod(Method):
    """Learns from given media."""

    num_levels: int = 50

    @abstractmethod
    def times(self, levels: Levels, generator: torch.Generator) -> Sequence[int]:
        """The levels at which each micro-batch is corrupted."""

    @abstractmethod
    def loss(self, view: ForwardView) -> Loss:
        """One number a row for one level."""


class DifferentiableMethod(Method):
    """Learns through the sampler and a differentiable reward."""

    @abstractmethod
    def grad_from(self, num_steps: int, generator: torch.Generator) -> int:
        """The first step that carries gradients."""

    @abstractmethod
    def loss(self, scores: Scores) -> Loss:
        """One number a row from the scores of the decoded samples."""


def pick_times(count: int, low: int, high: int, generator: torch.Generator) -> list[int]:
    """`count` distinct indices of [low, high), sorted, one from each of `count` equal strata.

    Raises:
        InputError: there are fewer levels than asked for.
    """
    if high - low < count:
        raise InputError(f"{count} levels were asked for, but the grid has {high - low}; lower method.times")
    edges = torch.linspace(low, high, count + 1).round().long()
    jitter = torch.rand(count, generator=generator)
    spans = (edges[1:] - edges[:-1]).float()
    return (edges[:-1] + (jitter * spans).long()).tolist()
