"""Checkpoints of the original BLIP in transformers' own BLIP classes; only parameter names differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from visalign.rewards.encoders import load_exactly

HEAD_WIDTH = 64
"""Of one attention head in both halves, which a checkpoint does not tell."""
VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.#.norm1.": "encoder.layers.#.layer_norm1.",
    "blocks.#.norm2.": "encoder.layers.#.layer_norm2.",
    "blocks.#.attn.qkv.": "encoder.layers.#.self_attn.qkv.",
    "blocks.#.attn.proj.": "encoder.layers.#.self_attn.projection.",
    "blocks.#.mlp.": "encoder.layers.#.mlp.",
    "norm.": "post_layernorm.",
}
"""Beginnings of names in a checkpoint and in transformers; # is a number."""


def vision_name(name: str) -> str:
    """The name in transformers' BLIP of a parameter of the checkpoint's vision transformer.

    Example:
        >>> vision_name("blocks.3.attn.proj.weight")
        'encoder.layers.3.self_attn.projection.weight'
    """
    return _translated(name, VISION_NAMES)


def checkpoint_name(name: str) -> str:
    """The name in a checkpoint of a parameter of transformers' vision transformer.

    Example:
        >>> checkpoint_name("encoder.layers.3.self_attn.projection.weight")
        'blocks.3.attn.proj.weight'
    """
    return _translated(name, {theirs: ours for ours, theirs in VISION_NAMES.items()})


def _translated(name: str, table: Mapping[str, str]) -> str:
    for start, other in table.items():
        pattern = re.escape(start).replace(r"\#", r"(\d+)")
        if re.match(pattern, name):
            return re.sub(pattern, other.replace("#", r"\1"), name, count=1)
    return name


def blank_text(vocabulary: int, width: int, seen: int, layers: int, hidden: int, positions: int) -> Any:
    """BLIP's text encoder (`BlipTextModel`) of these sizes; `seen` is the width of the image tokens that it reads."""
    from transformers import BlipTextConfig, BlipTextModel

    config = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=seen,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_WIDTH,
        intermediate_size=hidden,
        max_position_embeddings=positions,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # makes the cross-attention; the forward pass says that attention is not causal
        use_cache=False,
    )
    return BlipTextModel(config, add_pooling_layer=False)


def blank_vision(width: int, hidden: int, layers: int, image: int, patch: int) -> Any:
    """BLIP's vision transformer (`BlipVisionModel`) of these sizes."""
    from transformers import BlipVisionConfig, BlipVisionModel

    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_WIDTH,
        image_size=image,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    return BlipVisionModel(config)


def text_model(tensors: Mapping[str, Tensor], source: str) -> Any:
    """BLIP's text encoder from a checkpoint's tensors, whose shapes tell its sizes.

    Raises:
        InputError: they do not have that layout.
    """
    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    model = blank_text(
        vocabulary,
        width,
        seen=tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        layers=sum(k.endswith("crossattention.self.key.weight") for k in tensors),
        hidden=len(tensors["encoder.layer.0.intermediate.dense.weight"]),
        positions=len(tensors["embeddings.position_embeddings.weight"]),
    )
    load_exactly(model, tensors, source)
    return model


def vision_model(tensors: Mapping[str, Tensor], source: str) -> Any:
    """BLIP's vision transformer from a checkpoint's tensors, whose shapes tell its sizes.

    Raises:
        InputError: they do not have that layout.
    """
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    model = blank_vision(
        width,
        hidden=len(tensors["blocks.0.mlp.fc1.weight"]),
        layers=sum(k.endswith("attn.qkv.weight") for k in tensors),
        image=patch * round((tensors["pos_embed"].shape[1] - 1) ** 0.5),
        patch=patch,
    )
    load_exactly(model, {vision_name(k): v for k, v in tensors.items()}, source)
    return model
