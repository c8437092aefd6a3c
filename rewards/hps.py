"""HPSv2 and HPSv2.1 (2306.09341), and the relative score of SRPO (2509.06942) on the same encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.clip import cosines
from visalign.rewards.encoders import EmbeddingReward, dual_encoder, with_file

ARCHITECTURE = "open_clip:ViT-H-14"
V20 = Weights("xswu/HPSv2", "HPS_v2_compressed.pt", "Apache-2.0")
V21 = Weights("xswu/HPSv2", "HPS_v2.1_compressed.pt", "Apache-2.0")
PAPER = "Human Preference Score v2, arXiv 2306.09341"


def _spec(name: str, weights: Weights, paper: str = PAPER) -> RewardSpec:
    return RewardSpec(
        name=name,
        inputs=("prompt",),
        differentiable=True,
        range=(-1.0, 1.0),
        weights=(weights,),
        memory_gb=4.0,
        paper=paper,
        tiny="shapes/clip",
    )


def relative_text(positive: Tensor, negative: Tensor, strength: float) -> Tensor:
    """(1 + strength)·positive − negative, (B, D): what an image is compared with instead of its prompt.

    Args:
        positive: unit embeddings (B, D) of the prompts behind a word for what is wanted.
        negative: the same behind a word for what is not.
        strength: how much the wanted side outweighs, ≥ 0.

    Example:
        >>> import torch
        >>> relative_text(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
        tensor([[ 1.5000, -1.0000]])
    """
    return (1 + strength) * positive - negative


class HPS(EmbeddingReward):
    """The cosine of both versions; they differ in their weights, and their scales must not be mixed.

    Args:
        model: an open_clip architecture, which the weight file fills, or any encoder that `clip` takes, with its own
            weights (`shapes/clip`).
        weights: local weight file; None is the hub's.
        fit: how images become square: `pad` as in the paper's code, or `crop`, `squash` as in others' ports.

    Raises:
        InputError: the model or its weights cannot be loaded.
    """

    def __init__(
        self, model: str = ARCHITECTURE, weights: str | None = None, fit: Literal["pad", "crop", "squash"] = "pad"
    ) -> None:
        super().__init__(dual_encoder(with_file(model, self.spec.weights[0], weights)), fit)

    def values(self, images: Tensor, texts: tuple[str, ...]) -> Tensor:
        """Cosines (B,)."""
        return cosines(images, self.encoder.texts(texts, images.device))


class HPSv2(HPS):
    """Human Preference Score v2: cosine, in [-1, 1]; images lie between 0.2 and 0.36."""

    spec = _spec("hpsv2", V20)


class HPSv21(HPS):
    """Human Preference Score v2.1: cosine, in [-1, 1]; images lie between 0.2 and 0.36, good ones above 0.3."""

    spec = _spec("hpsv2.1", V21)


class RelativeScore(EmbeddingReward):
    """How much closer an image is to "good word. prompt" than to "bad word. prompt": what both words share cancels.

    Args:
        model: as in `hpsv2.1`.
        weights: local weight file; None is the hub's.
        positive: the word or words for what is wanted.
        negative: for what is not.
        strength: k of image·((1 + k)·positive − negative), ≥ 0; SRPO goes from 0.1 to 0.25 over the noise levels.

    Raises:
        InputError: the model or its weights cannot be loaded.
    """

    spec = _spec("srp", V21, "Directly Aligning the Full Diffusion Trajectory (SRPO), arXiv 2509.06942")

    def __init__(
        self,
        model: str = ARCHITECTURE,
        weights: str | None = None,
        positive: str = "Real",
        negative: str = "Painting",
        strength: float = 0.2,
    ) -> None:
        super().__init__(dual_encoder(with_file(model, self.spec.weights[0], weights)))
        self.positive = positive
        self.negative = negative
        self.strength = strength
        self.spec = replace(self.spec, range=(-2 - strength, 2 + strength))

    def values(self, images: Tensor, texts: tuple[str, ...]) -> Tensor:
        """Dot products (B,) with the relative texts."""
        positive, negative = (
            self.encoder.texts(tuple(f"{word}. {text}" for text in texts), images.device)
            for word in (self.positive, self.negative)
        )
        return cosines(images, relative_text(positive, negative, self.strength))
