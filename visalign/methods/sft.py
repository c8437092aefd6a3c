"""Supervised fine-tuning on media with captions: the model's own denoising objective on the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from visalign.methods.base import ForwardView, Loss, MediaMethod, pick_times
from visalign.section import Section
from visalign.types import Levels


class SFTConfig(Section):
    """Options of `sft`."""

    name: Literal["sft"] = "sft"
    times: int = Field(2, ge=1)
    """Levels a sample and update."""
    num_levels: int = Field(50, ge=1)
    """Size of the grid of levels."""


class SFT(MediaMethod):
    """Denoising error on given media."""

    Config = SFTConfig

    def __init__(self, config: SFTConfig) -> None:
        self.config = config
        self.num_levels = config.num_levels

    def times(self, levels: Levels, generator: torch.Generator) -> Sequence[int]:
        """Stratified levels, shared by all rows of the micro-batch."""
        return pick_times(self.config.times, 0, len(levels), generator)

    def loss(self, view: ForwardView) -> Loss:
        """Mean squared error in the denoiser's own prediction space, (B,)."""
        return Loss(view.error(view.output))
