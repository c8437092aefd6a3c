"""ImageReward (2304.05977): a BLIP that reads the prompt while it looks at the image, and a linear head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.blip import text_model, vision_model
from visalign.rewards.encoders import weight_file
from visalign.rewards.heads import head_of_tensors
from visalign.rewards.preprocess import Preprocess
from visalign.rewards.weights import read_tensors, source_of
from visalign.types import InputError, Media, Prompts, Scores

TOKENIZER = "google-bert/bert-base-uncased"
TOKENS = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's output over the training images; the reward is standardised by them."""
TEXT, VISION, HEAD = "blip.text_encoder.", "blip.visual_encoder.", "mlp."
"""The parts of the checkpoint; its projections and queues served BLIP's own training."""


def network(tensors: Mapping[str, Tensor], source: str) -> nn.ModuleDict:
    """The three parts of a checkpoint: `text`, `vision` and `head`.

    Raises:
        InputError: it does not have that layout.
    """
    text, vision, head = (
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        for prefix in (TEXT, VISION, HEAD)
    )
    try:
        parts = {"text": text_model(text, source), "vision": vision_model(vision, source)}
    except KeyError as error:
        raise InputError(f"{source!r} is no checkpoint of ImageReward: it has no {error}") from error
    return nn.ModuleDict(parts | {"head": head_of_tensors(head, "", source)})


def look(network: nn.ModuleDict, pixels: Tensor) -> Tensor:
    """Image tokens (B, N, D) of preprocessed pixels."""
    return network["vision"](pixel_values=pixels).last_hidden_state


def rate(network: nn.ModuleDict, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """What the head gives (B,) where texts, tokens and mask (B, T), look at image tokens (B, N, D)."""
    read = network["text"](
        input_ids=ids, attention_mask=mask, encoder_hidden_states=images, is_decoder=False
    ).last_hidden_state[:, 0]  # (B, D)
    return network["head"](read)


class ImageReward(Reward):
    """Standardised preference score, about -2.3 to 2.2; good images are above 0.8.

    Args:
        model: hub id or folder that holds ImageReward.pt, or model.safetensors with the same names.
        weights: a local file in its place.
        tokenizer: folder or hub id of BERT's uncased tokenizer; None is the model's folder where it holds one, else
            Google's.

    Raises:
        InputError: a file is missing or does not have that layout.

    Example:
        >>> noise = Media.of_images(torch.rand(2, 3, 64, 64))
        >>> ImageReward("shapes/blip").score(noise, Prompts(("a red star", "two circles"))).values.shape
        torch.Size([2])
    """

    spec = RewardSpec(
        name="imagereward",
        inputs=("prompt",),
        differentiable=True,
        weights=(Weights("THUDM/ImageReward", "ImageReward.pt", "Apache-2.0"),),
        memory_gb=1.8,
        paper="ImageReward, arXiv 2304.05977",
        tiny="shapes/blip",
    )

    def __init__(
        self, model: str = "THUDM/ImageReward", weights: str | None = None, tokenizer: str | None = None
    ) -> None:
        from transformers import AutoTokenizer

        source = source_of(model)
        path = weight_file(source, self.spec.weights[0], weights)
        tokenizer = tokenizer or (source if (Path(source) / "tokenizer.json").is_file() else TOKENIZER)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer)
        except (OSError, ValueError) as error:
            raise InputError(f"the tokenizer {tokenizer!r} cannot be loaded: {error}") from error
        self.network = network(read_tensors(path), str(path)).float().eval().requires_grad_(False)
        vision: Any = self.network["vision"]
        self.preprocess = Preprocess(vision.config.image_size)

    def prepare(self, media: Media) -> Media:
        """First frames at the encoder's size."""
        return Media.of_images(self.preprocess.square(media.images))

    @torch.no_grad()
    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B first frames."""
        return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        device = media.pixels.device
        self.network.to(device)
        tokens = self.tokenizer(
            list(prompts.texts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        ).to(device)
        images = look(self.network, self.preprocess(media.images))
        return Scores((rate(self.network, images, tokens.input_ids, tokens.attention_mask) - MEAN) / STD)
