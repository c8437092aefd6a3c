"""Where stochasticity lives in a rollout, and the step rule that records what will be trained.

Every random draw is a function of (seed, stream, prompt id, member, step), never of rank, batch size or call order.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from visalign import kernels, registry
from visalign.kernels import Kernel
from visalign.section import Section
from visalign.types import InputError, Step

if TYPE_CHECKING:
    from visalign.pipelines.tap import StepCall


class Window(Section):
    """Which steps of a rollout are stochastic; the others follow the scheduler's ODE."""

    size: int | None = Field(None, ge=1)
    """Number of consecutive stochastic steps (Flow-GRPO-Fast 2, MixGRPO 4); none means every step of [low, high)."""
    low: int = Field(0, ge=0)
    """First step that may be stochastic."""
    high: int | None = Field(None, ge=1)
    """First step that may not; none means the last one, whose transition has (nearly) no noise."""
    move: Literal["random", "progressive", "fixed"] = "random"
    """How the window moves: drawn anew at each iteration, forward with time (MixGRPO), or not at all."""
    every: int = Field(25, ge=1)
    """Iterations at one place, for `progressive`."""
    stride: int = Field(1, ge=1)
    """Steps moved at a time, for `progressive`."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the chosen steps that is trained, drawn at random each iteration (DanceGRPO 0.6)."""

    def steps(self, num_steps: int, iteration: int, seed: int) -> tuple[int, ...]:
        """The stochastic steps of an iteration, in order; a function of its arguments alone.

        Raises:
            InputError: the window does not fit into the run.
        """
        high = num_steps - 1 if self.high is None else self.high
        size = high - self.low if self.size is None else self.size
        places = high - self.low - size + 1
        if high > num_steps or places < 1:
            raise InputError(
                f"a window of {size} steps in [{self.low}, {high}) does not fit into {num_steps} steps; "
                f"lower rollout.window.size or raise rollout.num_steps"
            )
        draw = random.Random(f"window/{seed}/{iteration}")
        moves = {
            "random": draw.randrange(places),
            "progressive": iteration // self.every * self.stride % places,
            "fixed": 0,
        }
        start = self.low + moves[self.move]
        return tuple(range(start, start + size))

    def trained(self, steps: Sequence[int], iteration: int, seed: int) -> tuple[int, ...]:
        """The share of the stochastic steps that is trained."""
        keep = max(1, round(self.fraction * len(steps)))
        return tuple(sorted(random.Random(f"trained/{seed}/{iteration}").sample(list(steps), keep)))


class RolloutConfig(Section):
    """How samples are made while training."""

    num_steps: int = Field(8, ge=1)
    """Denoising steps."""
    guidance_scale: float = 1.0
    """Classifier-free guidance, the same in rollout and replay; 1 is none (and trains the model to need none)."""
    kernel: str = "ode"
    """Transition of the stochastic steps: see `visalign list kernels`."""
    eta: float = Field(0.7, ge=0)
    """Noise level of the kernel."""
    max_std: float = Field(math.inf, gt=0)
    """Upper bound of a step's standard deviation (LongCat 0.45)."""
    window: Window = Window()
    """Which steps are stochastic."""
    noise: Literal["independent", "per_group"] = "independent"
    """Initial noise of a group's members: their own, or one for all (DanceGRPO, TempFlow)."""
    policy: Literal["current", "old"] = "current"
    """Whose weights sample."""


def row_seed(seed: int, stream: str, prompt_id: int, member: int) -> int:
    """A 63-bit seed for one sample: a function of its identity alone."""
    digest = hashlib.sha256(f"{seed}/{stream}/{prompt_id}/{member}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw(seeds: Sequence[int], step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of one step, (B, *S) float32, each row from its own CPU generator."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed((seed + 0x9E3779B97F4A7C15 * (step + 1)) % 2**63)
        rows.append(torch.randn(tuple(shape), generator=generator))
    return torch.stack(rows)


def stochastic_kernel(config: RolloutConfig) -> Kernel:
    """The kernel of a rollout whose log-probabilities will be trained.

    Raises:
        InputError: the kernel is deterministic.
    """
    kernel: Kernel = registry.load("kernels", config.kernel)
    if kernel is kernels.ode or (config.eta == 0 and kernel not in (kernels.renoise, kernels.memoryless)):
        raise InputError(
            f"kernel {config.kernel!r} with eta {config.eta} is deterministic: it has no log-probability to train. "
            f"Choose rollout.kernel cps, flow_sde, dance_sde or ddim with eta > 0, or a method without log-probs (nft)"
        )
    return kernel


class Recorder:
    """The step rule of a rollout: stochastic in the window, the scheduler's own elsewhere; keeps the trained steps.

    Args:
        config: the rollout.
        stochastic: indices of the stochastic steps.
        trained: indices of those to keep, with their log-probabilities.
        seeds: one per row.
        keep_mean: keep each kept step's mean (GRPO-Guard needs it).
        storage: the dtype that states pass through between steps; log-probabilities are taken after that rounding.
        reduction, temper: see `Transition.log_prob`.
    """

    def __init__(
        self,
        config: RolloutConfig,
        stochastic: Sequence[int],
        trained: Sequence[int],
        seeds: Sequence[int],
        *,
        keep_mean: bool = False,
        storage: torch.dtype = torch.float32,
        reduction: str = "mean",
        temper: bool = False,
    ) -> None:
        self.config, self.stochastic, self.trained, self.seeds = config, set(stochastic), set(trained), seeds
        self.keep_mean, self.storage, self.reduction, self.temper = keep_mean, storage, reduction, temper
        self.kernel = registry.load("kernels", config.kernel)
        self.steps: list[Step] = []

    def __call__(self, call: StepCall) -> Tensor:
        """The next state of one step, (B, *S)."""
        if call.index not in self.stochastic:
            return call.default()
        step = kernels.transition(
            self.kernel, call.levels, call.index, call.sample, call.output,
            eta=self.config.eta, max_std=self.config.max_std,
        )  # fmt: skip
        noise = draw(self.seeds, call.index, call.sample.shape[1:]).to(call.sample.device)
        x_next = step.sample(noise).to(self.storage).float()
        if call.index in self.trained:
            log_prob = step.log_prob(x_next, reduction=self.reduction, temper=self.temper)
            mean = step.mean if self.keep_mean else None
            self.steps.append(Step(call.index, call.sample, x_next, call.loop, log_prob, mean))
        return x_next
