"""PickScore (2305.01569): a CLIP of size H tuned on people's choices between two images of one prompt."""

from __future__ import annotations

from torch import Tensor

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.clip import cosines
from visalign.rewards.encoders import EmbeddingReward, dual_encoder

MODEL = "yuvalkirstain/PickScore_v1"
PROCESSORS = {MODEL: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}
"""Whose tokenizer and sizes a model is used with, where it is not its own."""


class PickScore(EmbeddingReward):
    """Logit scale times cosine; images of PickScore v1 lie between 17 and 25, good ones above 22.

    A softmax over images of one prompt gives the probability that each is preferred. Usual scale for training: 1/26.

    Args:
        model: a hub id, a folder, or `shapes/clip`; any encoder that `clip` takes.

    Raises:
        InputError: the model cannot be loaded.

    Example:
        >>> import torch
        >>> from visalign.types import Media, Prompts
        >>> noise = Media.of_images(torch.rand(2, 3, 64, 64))
        >>> PickScore("shapes/clip").score(noise, Prompts(("a red star", "two circles"))).values.shape
        torch.Size([2])
    """

    spec = RewardSpec(
        name="pickscore",
        inputs=("prompt",),
        differentiable=True,
        range=(-100.0, 100.0),
        weights=(Weights(MODEL, "model.safetensors", "MIT"),),
        memory_gb=4.0,
        paper="Pick-a-Pic, arXiv 2305.01569",
        tiny="shapes/clip",
    )

    def __init__(self, model: str = MODEL) -> None:
        super().__init__(dual_encoder(model, PROCESSORS.get(model)))

    def values(self, images: Tensor, texts: tuple[str, ...]) -> Tensor:
        """Scaled cosines (B,)."""
        return self.encoder.logit_scale * cosines(images, self.encoder.texts(texts, images.device))
