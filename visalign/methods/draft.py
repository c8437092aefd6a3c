"""DRaFT-K (2309.17400): back-propagate a differentiable reward through the last K denoising steps and the decoder.

The prefix runs without gradients. The gradient's norm grows about as K/N, so the learning rate belongs to K. `margin`
is ReFL's bound (2304.05977): max(margin − r, 0) stops pulling once the reward is reached.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field

from visalign.methods.base import DifferentiableMethod, Loss
from visalign.section import Section
from visalign.types import InputError, Scores


class DRaFTConfig(Section):
    """Options of `draft`."""

    name: Literal["draft"] = "draft"
    last_steps: int = Field(1, ge=1)
    """K: the steps that carry gradients."""
    margin: float = math.inf
    """Rewards above this pull no more."""


class DRaFT(DifferentiableMethod):
    """Direct reward fine-tuning through the last K steps."""

    Config = DRaFTConfig

    def __init__(self, config: DRaFTConfig) -> None:
        self.config = config

    def grad_from(self, num_steps: int, generator: torch.Generator) -> int:
        """T − K.

        Raises:
            InputError: K is larger than the run.
        """
        if self.config.last_steps > num_steps:
            raise InputError(f"method.last_steps is {self.config.last_steps}, but a rollout has {num_steps} steps")
        return num_steps - self.config.last_steps

    def loss(self, scores: Scores) -> Loss:
        """−min(r, margin), (B,); invalid rows count nothing."""
        rows = -scores.values.clamp(max=self.config.margin)
        return Loss(torch.where(scores.valid, rows, torch.zeros_like(rows)))
