"""MPS (2405.14705): CLIP tokens of image and prompt, crossed where the prompt speaks of what people judge by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.clip import cosines
from visalign.rewards.encoders import load_exactly, preprocess_of, weight_file
from visalign.rewards.mps_network import CrossModel, cross_sizes
from visalign.rewards.weights import read_tensors, source_of
from visalign.types import InputError, Media, Prompts, Scores

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
THRESHOLD = 0.3
"""A prompt token counts when its similarity to the condition is above this share of the row's greatest."""


def condition_mask(texts: Tensor, condition: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Which prompt tokens count, (B, T) bool.

    The greatest similarity is taken row by row; over the batch, as in the original, a score would depend on its
    neighbours.

    Args:
        texts: token features (B, T, D).
        condition: token features (C, D) of the condition.
        threshold: share of the greatest similarity.

    Example:
        >>> condition_mask(torch.tensor([[[1.0, 0.0], [0.2, 0.9], [0.5, 0.0]]]), torch.tensor([[1.0, 0.0]]))
        tensor([[ True, False,  True]])
    """
    closest = torch.einsum("btd,cd->btc", texts, condition).amax(-1)  # (B, T)
    return closest / closest.amax(1, keepdim=True) > threshold


def look(network: nn.ModuleDict, pixels: Tensor) -> Tensor:
    """Features (B, N, D) of the image tokens of preprocessed pixels."""
    clip: Any = network["model"]
    return clip.visual_projection(clip.vision_model(pixel_values=pixels).last_hidden_state)


def read(network: nn.ModuleDict, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Features of all tokens of texts (P, T), padding too, (P, T, D), and of the end of each text (P, D)."""
    clip: Any = network["model"]
    found = clip.text_model(input_ids=ids)
    return clip.text_projection(found.last_hidden_state), clip.text_projection(found.pooler_output)


def preference(network: nn.ModuleDict, images: Tensor, texts: Tensor, ends: Tensor, condition: Tensor) -> Tensor:
    """Scores (B,) of image tokens (B, N, D) for prompt tokens (B, T, D) with ends (B, D), under a condition (C, D)."""
    clip: Any = network["model"]
    seen = network["cross_model"](images, texts, condition_mask(texts, condition))[:, 0]
    return clip.logit_scale.exp() * cosines(normalize(seen, dim=-1), normalize(ends, dim=-1))


class MPS(Reward):
    """Logit scale times the cosine of the prompt and the image as the prompt sees it; usually 8 to 16.

    Args:
        model: hub id or folder that holds model.safetensors with both parts, `model.…` (a CLIP) and `cross_model.…`.
        weights: a local file in its place, such as MPS_overall.pth; the pickled module of the original is refused.
        processor: folder or hub id of the CLIP's config, tokenizer and image processor; None is the model's folder, or
            LAION's H/14 for weights of the hub.

    Raises:
        InputError: a file is missing or does not have that layout.
    """

    spec = RewardSpec(
        name="mps",
        inputs=("prompt",),
        differentiable=True,
        range=(-100.0, 100.0),
        weights=(Weights("RE-N-Y/mpsv1", "model.safetensors", "MIT"),),
        memory_gb=4.3,
        paper="Learning Multi-dimensional Human Preference (MPS), arXiv 2405.14705",
        tiny="shapes/mps",
    )

    def __init__(self, model: str = "RE-N-Y/mpsv1", weights: str | None = None, processor: str | None = None) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel

        source = source_of(model)
        path = weight_file(source, self.spec.weights[0], weights)
        processor = processor or (source if (Path(source) / "config.json").is_file() else PROCESSOR)
        tensors = {k.removeprefix("mps.").replace(".fn.", "."): v for k, v in read_tensors(path).items()}
        try:
            clip = CLIPModel(AutoConfig.from_pretrained(processor))
            self.preprocess = preprocess_of(AutoImageProcessor.from_pretrained(processor))
            self.tokenizer: Any = AutoTokenizer.from_pretrained(processor)
        except (OSError, ValueError) as error:
            raise InputError(f"the processor {processor!r} cannot be loaded: {error}") from error
        self.network = nn.ModuleDict({"model": clip, "cross_model": CrossModel(*cross_sizes(tensors))})
        load_exactly(self.network, tensors, str(path))
        self.network.float().eval().requires_grad_(False)

    def prepare(self, media: Media) -> Media:
        """First frames at the encoder's size."""
        return Media.of_images(self.preprocess.square(media.images))

    @torch.no_grad()
    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B first frames."""
        return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        self.network.to(media.pixels.device)
        distinct = list(dict.fromkeys(prompts.texts))
        tokens, ends = self._texts([CONDITION, *distinct])
        rows = [1 + distinct.index(text) for text in prompts.texts]
        images = look(self.network, self.preprocess(media.images))
        return Scores(preference(self.network, images, tokens[rows], ends[rows], tokens[0]))

    @torch.no_grad()
    def _texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        clip: Any = self.network["model"]
        length = clip.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return read(self.network, tokens.input_ids.to(clip.device))
