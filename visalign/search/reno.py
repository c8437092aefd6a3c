"""ReNO (2406.04312): gradient ascent of the reward in the initial noise, through the whole sampler.

Each chain minimises −r(g(ε)) + w·[½‖ε‖² − (d−1) log‖ε‖] by SGD with Nesterov momentum; the bracket keeps the norm that
a Gaussian has, and its gradient is clipped together with the reward's. What is returned is the iterate of highest
reward, the regulariser left out. The paper's generators take one step; here the gradient goes through any number of
them, with the denoiser's activations computed again step by step (`checkpoint`): one more forward pass, which counts.

Whatever else the sampler draws is keyed by the chain's seed and so the same at every iterate. The norm says nothing of
structure; `concentration_weight` adds the independence test of DNO (2405.18881), flat on typical noise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from visalign.rollout import row_seed
from visalign.search.base import Problem, Search
from visalign.search.noise import chi_penalty, clip_rows, concentration_penalty, nesterov
from visalign.search.state import Budget, State
from visalign.section import Section


class ReNOConfig(Section):
    """Options of `reno`."""

    name: Literal["reno"] = "reno"
    lr: float = Field(5.0, gt=0)
    """With `clip` it bounds a step's length: the noise has norm √d, 128 for the latents of a 512 px image."""
    momentum: float = Field(0.9, ge=0, lt=1)
    clip: float = Field(0.1, gt=0)
    """Largest norm of the gradient, of each chain."""
    norm_weight: float = Field(0.01, ge=0)
    """w of the norm's log-density."""
    concentration_weight: float = Field(0.0, ge=0)
    """Weight of DNO's test that the noise is still independent."""
    permutations: int = Field(100, ge=0)
    """Orders in which that test looks at the numbers; it holds as many copies of the noise."""
    chains: int = Field(1, ge=1)
    """Starts of each prompt, from the seeds seed, seed + 1, …"""
    checkpoint: bool = True
    """Hold one denoiser call's activations at a time, for one more forward pass."""


class ReNO(Search):
    """Gradient ascent in the initial noise, with differentiable rewards."""

    Config = ReNOConfig
    needs_gradient: ClassVar[bool] = True
    default_budget: ClassVar[Budget] = Budget(candidates=50)

    config: ReNOConfig

    def __init__(self, config: ReNOConfig) -> None:
        self.config = config

    @property
    def width(self) -> int:
        """The number of chains."""
        return self.config.chains

    def start(self, problem: Problem) -> State:
        """The chains at the noise of their seeds, at rest."""
        state = problem.seeded(0, self.config.chains)
        noise = problem.sampler.noise(state.prompts.tolist(), state.seeds.tolist())
        return replace(state, own={"next": noise, "velocity": torch.zeros_like(noise)})

    def goes_on(self, state: State, problem: Problem) -> bool:
        """Until the budget allowed a look at the last iterate, but no further move."""
        return "next" in state.own and problem.room() >= self.width

    def step(self, state: State, problem: Problem, iteration: int) -> State:
        """Evaluate every chain where it stands now, and move it; the last iterate needs no gradient."""
        config, rows = self.config, len(state)
        asked = replace(state, noise=state.own["next"], parents=state.ids)
        ahead = problem.cost(rows, checkpoint=config.checkpoint)
        if problem.room(ahead_calls=ahead, ahead_candidates=rows) < self.width:
            return replace(problem.evaluate(asked), own={})
        found, uphill = problem.gradients(asked, checkpoint=config.checkpoint)
        assert found.noise is not None
        gradient = clip_rows(self.downhill(found.noise, problem.seed, iteration) - uphill, config.clip)
        noise, velocity = nesterov(found.noise, gradient, found.own["velocity"], config.lr, config.momentum)
        return replace(found, own={"next": noise, "velocity": velocity})

    def downhill(self, noise: Tensor, seed: int, iteration: int) -> Tensor:
        """∇ of the weighted penalties, (K, *S) float32; the same permutations for all rows of an iteration."""
        config, leaf = self.config, noise.detach().requires_grad_()
        penalty = config.norm_weight * chi_penalty(leaf)
        if config.concentration_weight:
            generator = torch.Generator().manual_seed(row_seed(seed, "permutations", iteration, 0))
            count, size = config.permutations, leaf[0].numel()
            orders = [torch.randperm(size, generator=generator) for _ in range(count)]
            permutations = torch.stack(orders) if orders else torch.empty(0, size, dtype=torch.long)
            penalty = penalty + config.concentration_weight * concentration_penalty(leaf, permutations)
        return torch.autograd.grad(penalty.sum(), leaf)[0]
