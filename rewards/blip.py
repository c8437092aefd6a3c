"""Checkpoints of the original BLIP in transformers' own BLIP classes; only parameter names differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from visalign.rewards.encoders import load_exactly

HEAD_WIDTH = 64
"""Of one attention head in both halves, which a checkpoint does not tell."""
VISION_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)


def vision_name(name: str) -> str:
    """The name in transformers' BLIP of a parameter of the checkpoint's vision transformer.

    Example:
        >>> vision_name("blocks.3.attn.proj.weight")
        'encoder.layers.3.self_attn.projection.weight'
    """
    for pattern, replacement in VISION_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def text_model(tensors: Mapping[str, Tensor], source: str) -> Any:
    """BLIP's text encoder (`BlipTextModel`) from a checkpoint's tensors, whose shapes tell its sizes.

    Raises:
        InputError: they do not have that layout.
    """
    from transformers import BlipTextConfig, BlipTextModel

    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        num_hidden_layers=sum(k.endswith("crossattention.self.key.weight") for k in tensors),
        num_attention_heads=width // HEAD_WIDTH,
        intermediate_size=len(tensors["encoder.layer.0.intermediate.dense.weight"]),
        max_position_embeddings=len(tensors["embeddings.position_embeddings.weight"]),
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # makes the cross-attention; the forward pass says that attention is not causal
        use_cache=False,
    )
    model = BlipTextModel(config, add_pooling_layer=False)
    load_exactly(model, tensors, source)
    return model


def vision_model(tensors: Mapping[str, Tensor], source: str) -> Any:
    """BLIP's vision transformer (`BlipVisionModel`) from a checkpoint's tensors, whose shapes tell its sizes.

    Raises:
        InputError: they do not have that layout.
    """
    from transformers import BlipVisionConfig, BlipVisionModel

    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(tensors["blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=sum(k.endswith("attn.qkv.weight") for k in tensors),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * round((tensors["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    model = BlipVisionModel(config)
    load_exactly(model, {vision_name(k): v for k, v in tensors.items()}, source)
    return model
