"""The towers of `shapes/clip` as transformers names them, for judges of other classes that see through its eyes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from visalign.shapes.judges.clip import MEAN, STD, Clip
from visalign.shapes.models import BOS, EOS, MAX_TOKENS, PAD


def picture_processor(size: int) -> CLIPImageProcessor:
    """What pictures go through before the eyes: resized and cropped to a square, and scaled to [-1, 1]."""
    square = {"height": size, "width": size}
    return CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size=square, image_mean=list(MEAN), image_std=list(STD)
    )


def vision_sizes(clip: Clip, layers: int) -> dict[str, Any]:
    """What a vision config of transformers says of the tower's first layers."""
    visual = clip.visual
    first = visual.transformer.resblocks[0]
    return {
        "hidden_size": visual.conv1.weight.shape[0],
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": layers,
        "num_attention_heads": first.attn.num_heads,
        "image_size": visual.image_size[0],
        "patch_size": visual.conv1.weight.shape[-1],
        "hidden_act": "gelu",
    }


def text_sizes(clip: Clip) -> dict[str, Any]:
    """What a text config of transformers says of the text tower."""
    first = clip.transformer.resblocks[0]
    return {
        "vocab_size": clip.token_embedding.weight.shape[0],
        "hidden_size": clip.token_embedding.weight.shape[1],
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(clip.transformer.resblocks),
        "num_attention_heads": first.attn.num_heads,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_act": "gelu",
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


def eyes_of(visual: Any, layers: int) -> Iterator[tuple[str, Tensor]]:
    """The first layers of open_clip's vision tower."""
    yield "embeddings.class_embedding", visual.class_embedding
    yield "embeddings.position_embedding.weight", visual.positional_embedding
    yield "embeddings.patch_embedding.weight", visual.conv1.weight
    yield from _renamed(visual.ln_pre, "pre_layrnorm")
    yield from _blocks(visual.transformer.resblocks[:layers])


def words_of(clip: Clip) -> Iterator[tuple[str, Tensor]]:
    """Open_clip's text tower."""
    yield "embeddings.token_embedding.weight", clip.token_embedding.weight
    yield "embeddings.position_embedding.weight", clip.positional_embedding
    yield from _blocks(clip.transformer.resblocks)
    yield from _renamed(clip.ln_final, "final_layer_norm")


def _blocks(blocks: Any) -> Iterator[tuple[str, Tensor]]:
    for i, block in enumerate(blocks):
        layer = f"encoder.layers.{i}"
        for letter, weight, bias in zip(
            "qkv", block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True
        ):
            yield f"{layer}.self_attn.{letter}_proj.weight", weight
            yield f"{layer}.self_attn.{letter}_proj.bias", bias
        yield from _renamed(block.attn.out_proj, f"{layer}.self_attn.out_proj")
        yield from _renamed(block.ln_1, f"{layer}.layer_norm1")
        yield from _renamed(block.ln_2, f"{layer}.layer_norm2")
        yield from _renamed(block.mlp.c_fc, f"{layer}.mlp.fc1")
        yield from _renamed(block.mlp.c_proj, f"{layer}.mlp.fc2")


def _renamed(module: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    return ((f"{name}.{key}", value) for key, value in module.state_dict().items())


def as_transformers(clip: Clip) -> CLIPModel:
    """The whole CLIP as a `CLIPModel` with the same embeddings; the sigmoid's bias has no place there."""
    layers = len(clip.visual.transformer.resblocks)
    config = CLIPConfig(
        text_config=text_sizes(clip),
        vision_config=vision_sizes(clip, layers),
        projection_dim=clip.visual.proj.shape[1],
    )
    model = CLIPModel(config)
    model.vision_model.load_state_dict(
        dict(eyes_of(clip.visual, layers)) | dict(_renamed(clip.visual.ln_post, "post_layernorm"))
    )
    model.text_model.load_state_dict(dict(words_of(clip)))
    model.visual_projection.load_state_dict({"weight": clip.visual.proj.T})
    model.text_projection.load_state_dict({"weight": clip.text_projection.T})
    model.load_state_dict({"logit_scale": clip.logit_scale}, strict=False)
    return model


@torch.no_grad()
def speak_up(text: Any) -> None:
    """Fresh weights of a Llama or Qwen: words are as loud as pictures, and layers do not drown what is there."""
    nn.init.normal_(text.embed_tokens.weight)
    for layer in text.layers:
        for linear in (m for m in layer.modules() if isinstance(m, nn.Linear)):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight *= (2 * len(text.layers)) ** -0.5
