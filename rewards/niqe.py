"""Statistics of natural scenes, no reference (NIQE and its kin), through pyiqa, whose licence is non-commercial."""

from __future__ import annotations

from typing import Any

import torch

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.optional import optional
from visalign.types import InputError, Media, Prompts, Scores

METRICS = ("niqe", "ilniqe", "brisque", "piqe")
"""Those of pyiqa where smaller is better and nothing carries a gradient."""


class Niqe(Reward):
    """Minus pyiqa's measure of the first frame, ≤ 0 for ordinary pictures; good photographs have −2 to −5 by NIQE.

    Sides below 96 pixels hold no whole block of NIQE; what gives no finite number is invalid.

    Args:
        model: `niqe`, `ilniqe`, `brisque` or `piqe`.
        weights: a local file of the measure's parameters (`.mat`); None lets pyiqa download it.

    Raises:
        InputError: no such measure, or pyiqa is not installed.

    Example:
        >>> Niqe(model="psnr")
        Traceback (most recent call last):
            ...
        visalign.types.InputError: niqe takes model: niqe | ilniqe | brisque | piqe, but 'psnr' came
    """

    spec = RewardSpec(
        name="niqe",
        weights=(Weights("chaofengc/IQA-PyTorch-Weights", "niqe_modelparameters.mat", "PolyForm-Noncommercial-1.0.0"),),
        paper="Making a completely blind image quality analyzer, doi 10.1109/LSP.2012.2227726",
        extra="iqa",
    )

    def __init__(self, model: str = "niqe", weights: str | None = None) -> None:
        if model not in METRICS:
            raise InputError(f"niqe takes model: {' | '.join(METRICS)}, but {model!r} came")
        options = {} if weights is None else {"pretrained_model_path": weights}
        self.measure: Any = optional("pyiqa", "iqa", "niqe").create_metric(model, device="cpu", **options)

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B first frames."""
        self.measure.to(media.pixels.device)
        values = -torch.cat([self.measure(image[None]).reshape(1) for image in media.images.float()]).float()
        return Scores(values.nan_to_num(0.0, 0.0, 0.0), valid=values.isfinite())
