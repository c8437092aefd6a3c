"""Hummingbird's global semantic reward (2502.05153): does some part of the picture say what the description says?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.preprocess import Preprocess
from visalign.rewards.weights import source_of
from visalign.types import InputError, Media, Prompts, Scores


def best_query(queries: Tensor, texts: Tensor) -> Tensor:
    """The largest cosine of a picture's query tokens with its text, (B,).

    Args:
        queries: unit embeddings (B, Q, D).
        texts: unit embeddings (B, D).

    Example:
        >>> best_query(torch.eye(2)[None], torch.tensor([[0.6, 0.8]]))
        tensor([0.8000])
    """
    return (queries * texts.unsqueeze(1)).sum(-1).amax(1)


class Hummingbird(Reward):
    """Largest cosine of BLIP-2's visual query tokens with the text's class token, in [-1, 1].

    The text is the column `context`, a description of the reference picture in view of the question as the paper has
    it, or else the prompt.

    Args:
        model: a `Blip2ForImageTextRetrieval` (folder or hub id), or `shapes/blip2`.

    Raises:
        InputError: the model cannot be loaded.
    """

    spec = RewardSpec(
        name="hummingbird",
        inputs=("prompt",),
        differentiable=True,
        range=(-1.0, 1.0),
        weights=(Weights("Salesforce/blip2-itm-vit-g", "model.safetensors.index.json", "MIT"),),
        memory_gb=4.7,
        paper="2502.05153",
        tiny="shapes/blip2",
    )

    def __init__(self, model: str = "Salesforce/blip2-itm-vit-g") -> None:
        from transformers import AutoTokenizer, Blip2ForImageTextRetrieval

        try:
            module: Any = Blip2ForImageTextRetrieval.from_pretrained(source_of(model), dtype=torch.float32)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source_of(model))
        except (OSError, ValueError) as error:
            raise InputError(f"the model {model!r} cannot be loaded: {error}") from error
        self.module = module.eval().requires_grad_(False)
        self.preprocess = Preprocess(module.config.vision_config.image_size, "squash")

    def prepare(self, media: Media) -> Media:
        """First frames at the model's size."""
        return Media.of_images(self.preprocess.square(media.images))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Cosines of B first frames."""
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        self.module.to(media.pixels.device)
        texts = [row.get("context", text) for text, row in zip(prompts.texts, prompts.columns, strict=True)]
        tokens = self._tokens(texts).to(media.pixels.device)
        seen = self.module(pixel_values=self.preprocess(media.images), **tokens)
        return Scores(best_query(seen.image_embeds, seen.text_embeds).float().clamp(-1, 1))

    def _tokens(self, texts: list[str]) -> Any:
        """Ids and mask; where the configuration has a placeholder for the picture, the model cuts it off again."""
        config = self.module.config
        longest = config.qformer_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        if config.image_token_index is not None:
            shape = (len(texts), config.num_query_tokens)
            ids = torch.cat([torch.full(shape, config.image_token_index), ids], 1)
            mask = torch.cat([torch.ones(shape, dtype=mask.dtype), mask], 1)
        return type(tokens)({"input_ids": ids, "attention_mask": mask})
