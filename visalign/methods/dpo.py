"""Diffusion-DPO (2311.12908), in the denoiser's own prediction space: ε for SD 1.5 and SDXL, velocity for flow models.

    L = −log σ( −(β/2)·[(ℓ_θ − ℓ_ref)(chosen) − (ℓ_θ − ℓ_ref)(rejected)] )

ℓ is the mean squared error over the D latent elements at one level and one noise, shared by the pair: with noise of
their own the variance of the samples collapses. β of `mean` errors is D times that of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from visalign.methods.base import ForwardView, Loss, PairMethod, pick_times
from visalign.section import Section
from visalign.types import Levels


class DPOConfig(Section):
    """Options of `dpo`."""

    name: Literal["dpo"] = "dpo"
    beta: float = Field(500.0, gt=0)
    """Strength, for errors that are means over the latent elements (2000–5000 for SD, 100–2000 for flow models)."""
    times: int = Field(2, ge=1)
    """Levels a pair and update."""
    num_levels: int = Field(50, ge=1)
    """Size of the grid of levels."""
    sft: float = Field(0.0, ge=0)
    """Weight of the chosen row's own error, against both errors rising together."""


def pair_logits(delta: Tensor, beta: float) -> Tensor:
    """−(β/2)·(Δ(chosen) − Δ(rejected)), (B/2,), from the error differences (B,) of (chosen, rejected, …) rows."""
    return -0.5 * beta * (delta[0::2] - delta[1::2])


class DPO(PairMethod):
    """Direct preference optimisation on given pairs; the reference is the base with adapters off."""

    Config = DPOConfig
    needs = frozenset({"reference"})

    def __init__(self, config: DPOConfig) -> None:
        self.config = config
        self.num_levels = config.num_levels

    def times(self, levels: Levels, generator: torch.Generator) -> Sequence[int]:
        """Stratified levels, shared by all rows of the micro-batch."""
        return pick_times(self.config.times, 0, len(levels), generator)

    def loss(self, view: ForwardView) -> Loss:
        """The pair's loss, given to both of its rows, (B,)."""
        error = view.error(view.output)
        logits = pair_logits(error - view.error(view.others["reference"]), self.config.beta)
        pair = -logsigmoid(logits) + self.config.sft * error[0::2]
        metrics = {"implicit_accuracy": (logits > 0).float(), "logit": logits.detach(), "error": error.detach()}
        return Loss(pair.repeat_interleave(2), metrics)
