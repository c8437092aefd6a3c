"""One step of a run, what a run is asked to do differently from the pipeline's own, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from visalign.types import Levels, Media


@dataclass(frozen=True)
class StepCall:
    """One call of the scheduler's `step`, for a rule to answer.

    Attributes:
        index: position in the full run, 0 is the noisiest.
        output: the denoiser's output (B, *S) float32, guidance applied, as the scheduler got it.
        timestep: what the denoiser was told, () or (B,).
        sample: the state as the scheduler sees it, (B, *S) float32.
        loop: the state as the pipeline's loop holds it before this step, (B, *S') in the loop's dtype.
        levels: of the full run, however few steps are visited.
        default: the scheduler's own step; returns the next sample, (B, *S) float32.
    """

    index: int
    output: Tensor
    timestep: Tensor
    sample: Tensor
    loop: Tensor
    levels: Levels
    default: Callable[[], Tensor]


OnStep = Callable[[StepCall], Tensor]


@dataclass(frozen=True)
class Plan:
    """What differs from the pipeline's own run.

    Attributes:
        on_step: answers each step with the next sample (B, *S); None is the scheduler's own step.
        only: the steps to visit, in order; None is all, an empty list none (no denoiser call, the state is decoded).
        start: the first step to visit, where `only` is None.
        states: step → loop state to stand before it instead, for visited steps. Graphs are kept.
        final: loop state to stand at the end instead.
        timesteps: what the denoiser is told instead of the schedule's own, one entry a visited step.
    """

    on_step: OnStep | None = None
    only: Sequence[int] | None = None
    start: int = 0
    states: Mapping[int, Tensor] = field(default_factory=dict)
    final: Tensor | None = None
    timesteps: Tensor | None = None


@dataclass(frozen=True)
class Run:
    """What a rollout leaves behind.

    Attributes:
        levels: noise levels of the run.
        initial: loop state it started from, (B, *S) float32.
        final: loop state it ended at, (B, *S) float32.
        media: decoded output; None where it was not asked for.
    """

    levels: Levels
    initial: Tensor
    final: Tensor
    media: Media | None


def recording_from(first: int, rule: OnStep | None) -> OnStep:
    """A rule that lets autograd record from step `first` on.

    Args:
        first: the first step whose denoiser call is recorded; T records the decoding alone.
        rule: answers each step; None is the scheduler's own step.
    """

    def step(call: StepCall) -> Tensor:
        following = call.default() if rule is None else rule(call)
        if call.index == first - 1:  # inside the step before, since the denoiser is called before its step is
            torch.set_grad_enabled(True)
        return following

    return step
