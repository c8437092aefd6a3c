"""LAION's aesthetic predictor v2: how people rate a picture from 1 to 10, from its CLIP embedding alone."""

from __future__ import annotations

from torch import Tensor

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.heads import HeadReward, open_head

ENCODER = "openai/clip-vit-large-patch14"
HEAD = Weights("trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth", "Apache-2.0")
LAYERS = (768, 1024, 128, 64, 16, 1)
"""Widths of LAION's head, without activations: it is affine in the unit embedding, and easy to hack."""


class Aesthetic(HeadReward):
    """LAION's head on CLIP L/14: about 1 to 10, usually 5 to 6.5, without bounds; or a head in a folder, in its range.

    Args:
        model: the encoder of a weight file, or a folder with `head.safetensors` and `config.json` (`rewards/heads.py`),
            or `shapes/aesthetic`.
        weights: local weight file for the encoder, such as sac+logos+ava1-l14-linearMSE.pth; None is the hub's copy.

    Raises:
        InputError: the encoder or the head cannot be loaded, or (in `score`) they do not fit each other.

    Example:
        >>> import torch
        >>> from visalign.types import Media, Prompts
        >>> noise = Media.of_images(torch.rand(2, 3, 64, 64))
        >>> bool((Aesthetic("shapes/aesthetic").score(noise, Prompts(("", ""))).values < 3).all())
        True
    """

    spec = RewardSpec(
        name="aesthetic",
        differentiable=True,
        weights=(Weights(ENCODER, "model.safetensors", "MIT"), HEAD),
        memory_gb=1.7,
        paper="improved-aesthetic-predictor, LAION 2022",
        tiny="shapes/aesthetic",
    )

    def __init__(self, model: str = ENCODER, weights: str | None = None) -> None:
        super().__init__(open_head(model, HEAD, weights))

    def values(self, images: Tensor, texts: tuple[str, ...]) -> Tensor:
        """The head's values (B,)."""
        return self.judge(images)
