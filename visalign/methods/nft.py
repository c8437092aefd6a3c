"""DiffusionNFT (2509.16117): contrast an implicit positive and negative policy around the old one on clean samples.

    v⁺ = β·v + (1−β)·v_old,  v⁻ = (1+β)·v_old − β·v
    L = A_max·mean[ r·‖x̂0⁺ − x0‖²/w⁺ + (1−r)·‖x̂0⁻ − x0‖²/w⁻ ]/β + kl·‖v − v_ref‖²

with r = clip(A/A_max, −1, 1)/2 + ½ and w = stopgrad mean|x̂0 − x0|. Without w, up to constants, β·L is
β‖d‖² − 2(2r−1)·d·u with d = v − v_old and u = target − v_old: an advantage-weighted pull with β as trust region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from visalign.kernels import reduce
from visalign.methods.base import ForwardView, Loss, SampleMethod, pick_times
from visalign.section import Section
from visalign.types import Levels


class NFTConfig(Section):
    """Options of `nft`."""

    name: Literal["nft"] = "nft"
    beta: float = Field(1.0, gt=0)
    """Strength of the implicit policies; smaller trusts the old policy less."""
    kl: float = Field(1e-4, ge=0)
    """Weight of the velocity MSE to the reference."""
    advantage_max: float = Field(5.0, gt=0)
    """Advantages are mapped from ± this to optimality in [0, 1]."""
    times: int | None = Field(None, ge=1)
    """Levels trained a sample; none means all of the grid."""
    adaptive: bool = True
    """Divide each error by its own detached magnitude."""
    old_decay: Literal["copy", "ramp", "late_ramp"] = "ramp"
    """How slowly the sampling policy follows (types 0, 1, 2 of the authors' code)."""
    ramp_rate: float = Field(0.001, gt=0)
    """`ramp`: decay min(rate·iteration, ramp_max)."""
    ramp_max: float = Field(0.5, ge=0, lt=1)


def implicit_policies(output: Tensor, old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The positive and the negative policy's outputs, each (B, *S)."""
    return beta * output + (1 - beta) * old, (1 + beta) * old - beta * output


def clean_error(x0_hat: Tensor, x0: Tensor, adaptive: bool) -> Tensor:
    """Squared error of a clean prediction, (B,); adaptive divides it by its own mean magnitude (floor 1e-5)."""
    error = reduce((x0_hat - x0).square(), "mean")
    if not adaptive:
        return error
    weight = (x0_hat.detach().double() - x0.double()).abs().flatten(1).mean(1).clamp_min(1e-5)
    return error / weight.float()


def optimality(advantages: Tensor, advantage_max: float) -> Tensor:
    """Advantages as probabilities of being optimal, (B,) in [0, 1]."""
    return (advantages / advantage_max).clamp(-1, 1) / 2 + 0.5


class NFT(SampleMethod):
    """Negative-aware fine-tuning on clean samples; any sampler, no log-probabilities."""

    Config = NFTConfig

    def __init__(self, config: NFTConfig) -> None:
        self.config = config
        self.needs = frozenset({"old"} | ({"reference"} if config.kl else set()))

    def old_decay(self, updates: int) -> float:
        """Types 0, 1 and 2 of the authors' schedule."""
        config = self.config
        decays = {
            "copy": 0.0,
            "ramp": min(config.ramp_rate * updates, config.ramp_max),
            "late_ramp": min(max(0.0075 * (updates - 75), 0.0), 0.999),
        }
        return decays[config.old_decay]

    def times(self, levels: Levels, generator: torch.Generator) -> Sequence[int]:
        """All levels of the grid, or `times` of them, stratified."""
        count = len(levels) if self.config.times is None else self.config.times
        return pick_times(count, 0, len(levels), generator)

    def loss(self, view: ForwardView) -> Loss:
        """The contrast of one level, (B,)."""
        config = self.config
        old = view.others["old"]
        positive, negative = implicit_policies(view.output.float(), old.float(), config.beta)
        good = clean_error(view.clean(positive), view.x0, config.adaptive)
        bad = clean_error(view.clean(negative), view.x0, config.adaptive)
        r = optimality(view.advantages, config.advantage_max)
        rows = config.advantage_max * (r * good + (1 - r) * bad) / config.beta
        metrics = {"old_deviation": reduce((view.output.detach().float() - old.float()).square(), "mean")}
        if config.kl:
            kl = reduce((view.output.float() - view.others["reference"].float()).square(), "mean")
            rows = rows + config.kl * kl
            metrics["kl"] = kl.detach()
        return Loss(rows, metrics)
