"""Sharpness as the variance of the Laplacian, capped so that noise is not rewarded without end."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from visalign.rewards.base import Reward, RewardSpec
from visalign.types import InputError, Media, Prompts, Scores

LUMA = (0.299, 0.587, 0.114)
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def laplacian_variance(images: Tensor) -> Tensor:
    """Variance over the inner pixels of the Laplacian of the luma, (B,), in squared 8-bit levels.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Example:
        >>> laplacian_variance(torch.full((1, 3, 8, 8), 0.5)).round()
        tensor([0.])
    """
    luma = (255 * images * torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    kernel = torch.tensor(LAPLACIAN, device=images.device).view(1, 1, 3, 3)
    return F.conv2d(luma, kernel).var((1, 2, 3), correction=0)


class Sharpness(Reward):
    """Variance of the Laplacian as a share of the cap, in [0, 1]; 1, without a gradient, from the cap on.

    It grows with the resolution's detail and with noise alike: set the cap to what good pictures of the same size have,
    and use it beside a reward that sees noise. A blurred photograph has below 100, a sharp one several hundred.

    Args:
        cap: in squared 8-bit levels.

    Raises:
        InputError: the cap is not positive.
    """

    spec = RewardSpec(
        name="sharpness",
        differentiable=True,
        range=(0.0, 1.0),
        paper="Diatom autofocusing in brightfield microscopy, doi 10.1109/ICPR.2000.903548",
    )

    def __init__(self, cap: float = 1000.0) -> None:
        if cap <= 0:
            raise InputError(f"sharpness takes a cap above 0, but {cap} came; write for example cap: 1000")
        self.cap = cap

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B first frames."""
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        return Scores((laplacian_variance(media.images.float()) / self.cap).clamp_max(1))
