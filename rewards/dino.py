"""Similarity to reference images by DINOv2, as the fixed part of Adv-GRPO's reward (2511.20256)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.image_encoders import embed_pools, image_encoder
from visalign.rewards.references import references
from visalign.types import Media, Prompts, Scores


def nearest_cosine(embedding: Tensor, pool: Tensor) -> Tensor:
    """The largest cosine of a unit embedding (D,) with those of a pool (P, D), a number.

    Example:
        >>> nearest_cosine(torch.tensor([0.6, 0.8]), torch.eye(2))
        tensor(0.8000)
    """
    return (pool @ embedding).amax().clamp(-1, 1)


class Dino(Reward):
    """Cosine of the class tokens of the first frame and its closest reference, in [-1, 1].

    It judges content and layout, not the prompt: a picture that copies a reference has 1.

    Args:
        model: a DINOv2 (folder or hub id), or another image encoder such as `shapes/clip`.
        column: where a row's reference is (a path, a tensor, or a list); `source` falls back to the prompt's image.

    Raises:
        InputError: the model cannot be loaded, or (in `score`) a row does not have the column.
    """

    spec = RewardSpec(
        name="dino",
        inputs=("reference",),
        differentiable=True,
        range=(-1.0, 1.0),
        weights=(Weights("facebook/dinov2-base", "model.safetensors", "Apache-2.0"),),
        memory_gb=0.35,
        paper="2511.20256",
        tiny="shapes/clip",
    )

    def __init__(self, model: str = "facebook/dinov2-base", column: str = "reference") -> None:
        self.encoder = image_encoder(model)
        self.column = column
        self.spec = replace(self.spec, inputs=(column,))

    def prepare(self, media: Media) -> Media:
        """First frames at the encoder's size."""
        return Media.of_images(self.encoder.preprocess.square(media.images))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Cosines of B first frames; invalid where no reference can be read."""
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        pools = embed_pools(self.encoder, references(prompts, self.column, "dino"), media.pixels.device)
        found = self.encoder.images(media.images)
        values = [nearest_cosine(v, pool) if len(pool) else 0 * v.sum() for v, pool in zip(found, pools, strict=True)]
        return Scores(torch.stack(values), valid=torch.tensor([len(pool) > 0 for pool in pools]))
