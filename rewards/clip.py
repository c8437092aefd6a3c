"""CLIPScore (2104.08718): cosine between the image's and the prompt's embedding."""

from __future__ import annotations

from torch import Tensor

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.encoders import dual_encoder
from visalign.types import Media, Prompts, Scores


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    """Row by row, (B,), of unit embeddings (B, D)."""
    return (images * texts).sum(-1)


class Clip(Reward):
    """Cosine of CLIP embeddings, in [-1, 1]; matched pairs of OpenAI's L/14 lie between 0.15 and 0.35.

    Args:
        model: a transformers CLIP or SigLIP (folder or hub id), `open_clip:ARCHITECTURE/TAG`, or `shapes/clip`.

    Raises:
        InputError: the model cannot be loaded.
    """

    spec = RewardSpec(
        name="clip",
        inputs=("prompt",),
        differentiable=True,
        range=(-1.0, 1.0),
        weights=(Weights("openai/clip-vit-large-patch14", "model.safetensors", "MIT"),),
        memory_gb=1.7,
        paper="2104.08718",
        tiny="shapes/clip",
    )

    def __init__(self, model: str = "openai/clip-vit-large-patch14") -> None:
        self.encoder = dual_encoder(model)

    def prepare(self, media: Media) -> Media:
        """First frames at the encoder's size."""
        return Media.of_images(self.encoder.preprocess.square(media.images))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Cosines of B first frames."""
        return Scores(self.score_with_grad(media, prompts).values.detach())

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        texts = self.encoder.texts(prompts.texts, media.pixels.device)
        return Scores(cosines(self.encoder.images(media.images), texts))
