"""Peak signal-to-noise ratio against a reference, in decibels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from visalign.rewards.base import Reward, RewardSpec
from visalign.rewards.references import closest
from visalign.types import InputError, Media, Prompts, Scores


def psnr(images: Tensor, references: Tensor, cap: float = 50.0) -> Tensor:
    """10·log₁₀(1 / mean squared error), (B,), at most `cap`; the gradient is 0 from there on, where it would explode.

    Args:
        images: (B, 3, H, W) in [0, 1].
        references: the same shape.
        cap: in decibels.

    Example:
        >>> psnr(torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), 0.4)).round()
        tensor([20.])
    """
    error = (images - references).square().mean((1, 2, 3))
    return (-10 * torch.log10(error.clamp_min(10 ** (-cap / 10)))).clamp_max(cap)


class PSNR(Reward):
    """Decibels to the closest of the row's references, in [0, cap].

    Args:
        column: where a row's reference is (a path, a tensor, or a list); `source` falls back to the prompt's image.
        cap: from here on a picture counts as equal.

    Raises:
        InputError: the cap is not positive, or (in `score`) a row does not have the column.
    """

    spec = RewardSpec(name="psnr", inputs=("reference",), differentiable=True, range=(0.0, 50.0))

    def __init__(self, column: str = "reference", cap: float = 50.0) -> None:
        if cap <= 0:
            raise InputError(f"psnr takes a cap above 0 decibels, but {cap} came; write for example cap: 50")
        self.column = column
        self.cap = cap
        self.spec = replace(self.spec, inputs=(column,), range=(0.0, cap))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Decibels of B first frames; invalid where no reference can be read."""
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        return closest(media, prompts, self.column, "psnr", lambda a, b: psnr(a, b, self.cap))
