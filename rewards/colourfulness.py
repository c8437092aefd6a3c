"""Colourfulness of Hasler and Süsstrunk (2003): spread and strength of the opponent colours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

from visalign.rewards.base import Reward, RewardSpec
from visalign.types import Media, Prompts, Scores


def colourfulness(images: Tensor) -> Tensor:
    """√(σ²_rg + σ²_yb) + 0.3·√(μ²_rg + μ²_yb) with rg = R − G and yb = (R + G)/2 − B, (B,), in 8-bit levels.

    Both roots are norms, whose gradient at a grey picture is 0 and not infinite.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Example:
        >>> colourfulness(torch.full((1, 3, 8, 8), 0.5))
        tensor([0.])
    """
    red, green, blue = (255 * images).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], 1).flatten(2)  # (B, 2, H·W)
    mean = opponents.mean(2)
    spread = vector_norm(opponents - mean.unsqueeze(2), dim=(1, 2)) / opponents.shape[2] ** 0.5
    return spread + 0.3 * vector_norm(mean, dim=1)


class Colourfulness(Reward):
    """0 is grey; people call 15 slightly, 45 averagely and 80 highly colourful. Garish pictures are rewarded too."""

    spec = RewardSpec(
        name="colourfulness",
        differentiable=True,
        range=(0.0, None),
        paper="Measuring colourfulness in natural images, doi 10.1117/12.477378",
    )

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B first frames."""
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        return Scores(colourfulness(media.images.float()))
