"""CLIPScore (2104.08718): cosine between the image's and the prompt's embedding."""

from __future__ import annotations

from torch import Tensor

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.encoders import EmbeddingReward, dual_encoder
from visalign.types import InputError


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    """Row by row, (B,), of unit embeddings (B, D).

    Example:
        >>> import torch
        >>> cosines(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]))
        tensor([0.6000])
    """
    return (images * texts).sum(-1)


class Clip(EmbeddingReward):
    """Cosine of CLIP embeddings, in [-1, 1]; matched pairs of OpenAI's L/14 lie between 0.15 and 0.35.

    Args:
        model: a transformers CLIP or SigLIP (folder or hub id), `open_clip:ARCHITECTURE/TAG`, or `shapes/clip`.
        probability: σ(scale · cosine + bias) in place of the cosine: P(the prompt belongs to the image), as encoders
            that were trained with the sigmoid loss give it (SigLIP, 2303.15343, algorithm 1; `shapes/clip` too).

    Raises:
        InputError: the model cannot be loaded, or gives no probability.
    """

    spec = RewardSpec(
        name="clip",
        inputs=("prompt",),
        differentiable=True,
        range=(-1.0, 1.0),
        weights=(Weights("openai/clip-vit-large-patch14", "model.safetensors", "MIT"),),
        memory_gb=1.7,
        paper="CLIPScore, arXiv 2104.08718",
        tiny="shapes/clip",
    )

    def __init__(self, model: str = "openai/clip-vit-large-patch14", probability: bool = False) -> None:
        super().__init__(dual_encoder(model))
        self.bias = self.encoder.logit_bias if probability else None
        if probability and self.bias is None:
            raise InputError(
                f"{model!r} was not trained with the sigmoid loss and gives no probability; leave `probability` out, "
                f"or take a SigLIP, for example google/siglip-so400m-patch14-384"
            )

    def values(self, images: Tensor, texts: tuple[str, ...]) -> Tensor:
        """Cosines or probabilities (B,)."""
        found = cosines(images, self.encoder.texts(texts, images.device))
        return found if self.bias is None else (self.encoder.logit_scale * found + self.bias).sigmoid()
