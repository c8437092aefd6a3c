"""Structural similarity (Wang et al. 2004) to a reference."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from visalign.rewards.base import Reward, RewardSpec
from visalign.rewards.optional import optional
from visalign.rewards.references import closest
from visalign.types import Media, Prompts, Scores


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Mean structural similarity of images (B, 3, H, W) in [0, 1], sides of 6 or more, to as many references, (B,).

    Gaussian window of 11 with σ = 1.5, reflected edges; the range of the data is 1, never guessed from the batch.

    Example:
        >>> ssim(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.5))
        tensor([1.])
    """
    measure = optional("torchmetrics.functional.image", "metrics", "ssim").structural_similarity_index_measure
    similarities: Tensor = measure(images, references, data_range=1.0, reduction="none")
    return similarities


class SSIM(Reward):
    """Structural similarity to the closest of the row's references, in [-1, 1].

    Args:
        column: where a row's reference is (a path, a tensor, or a list); `source` falls back to the prompt's image.

    Raises:
        InputError: torchmetrics is not installed, or (in `score`) a row does not have the column.
    """

    spec = RewardSpec(
        name="ssim",
        inputs=("reference",),
        differentiable=True,
        range=(-1.0, 1.0),
        paper="Image quality assessment: from error visibility to structural similarity, doi 10.1109/TIP.2003.819861",
        extra="metrics",
    )

    def __init__(self, column: str = "reference") -> None:
        optional("torchmetrics", "metrics", "ssim")
        self.column = column
        self.spec = replace(self.spec, inputs=(column,))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Similarities of B first frames; invalid where no reference can be read."""
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        return closest(media, prompts, self.column, "ssim", ssim)
