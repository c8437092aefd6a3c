"""Build the parts of an SD3 pipeline at tiny size from a recipe, and save them as an ordinary diffusers folder."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from visalign.shapes.recipe import Recipe
from visalign.shapes.scenes import ARTICLES, COLORS, FRAMES, JOINS, NUMBERS, RELATIONS, SHAPES, Clause, Description

Pipeline: TypeAlias = Any
"""A StableDiffusion3Pipeline; diffusers' classes hide their attributes from type checkers."""
Autoencoder: TypeAlias = Any
"""An AutoencoderKL."""

MAX_TOKENS = 12
PAD, BOS, UNK, EOS = range(4)
_SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")


def vocabulary() -> dict[str, int]:
    """Every word of the grammar, numbered in alphabetical order after the four special tokens."""
    plurals = [Description(tag="counting", clauses=(Clause(shape=s, count=2),)).caption.split()[-1] for s in SHAPES]
    phrases = [*ARTICLES, "an", *COLORS, *JOINS, *NUMBERS.values(), *RELATIONS, *SHAPES, *plurals]
    phrases += [frame.replace("{}", "") for frame in FRAMES]
    words = sorted(set(itertools.chain.from_iterable(phrase.split() for phrase in phrases)))
    return {word: i for i, word in enumerate([*_SPECIAL, *words])}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level for lower case text, at most `MAX_TOKENS` tokens with begin and end; unknown words become <unk>."""
    tokenizer = Tokenizer(WordLevel(vocabulary(), unk_token=_SPECIAL[UNK]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    ends = [(_SPECIAL[BOS], BOS), (_SPECIAL[EOS], EOS)]
    tokenizer.post_processor = TemplateProcessing(single=f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends)
    return _fast(tokenizer)


def build_mute_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the mute T5: it drops every word, so that padding to any length truncates nothing."""
    tokenizer = Tokenizer(WordLevel(vocabulary(), unk_token=_SPECIAL[UNK]))
    tokenizer.normalizer = Replace(Regex(r"[\s\S]+"), "")
    return _fast(tokenizer)


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    names = dict(zip(("pad_token", "bos_token", "unk_token", "eos_token"), _SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, **names)


def build_autoencoder(recipe: Recipe) -> Autoencoder:
    """A convolutional autoencoder without attention; its scaling is set from data after training."""
    spec = recipe.autoencoder
    levels = len(spec.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=spec.channels,
        layers_per_block=1,
        latent_channels=spec.latent_channels,
        norm_num_groups=8,
        sample_size=recipe.size,
        shift_factor=0.0,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_text_encoder(recipe: Recipe, index: int) -> CLIPTextModelWithProjection:
    """Text tower `index` (0 or 1); SD3 reads its second last layer and the projected end token."""
    width = recipe.text.widths[index]
    config = CLIPTextConfig(
        vocab_size=len(vocabulary()),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=recipe.text.projection,
        num_hidden_layers=recipe.text.layers[index],
        num_attention_heads=recipe.text.heads,
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        dtype="float32",
    )
    return CLIPTextModelWithProjection(config)


def build_transformer(recipe: Recipe) -> SD3Transformer2DModel:
    """The denoiser: patches of 2 x 2 latents, joint attention with the words."""
    spec = recipe.denoiser
    side = recipe.size // 2 ** (len(recipe.autoencoder.channels) - 1)
    return SD3Transformer2DModel(
        sample_size=side,
        patch_size=2,
        in_channels=recipe.autoencoder.latent_channels,
        out_channels=recipe.autoencoder.latent_channels,
        num_layers=spec.layers,
        attention_head_dim=spec.head_dim,
        num_attention_heads=spec.heads,
        joint_attention_dim=sum(recipe.text.widths),
        caption_projection_dim=spec.heads * spec.head_dim,
        pooled_projection_dim=2 * recipe.text.projection,
        pos_embed_max_size=side // 2,
        qk_norm="rms_norm",
    )


def build_mute_t5(recipe: Recipe) -> T5EncoderModel:
    """A T5 without layers whose final norm is zero: it returns the zeros that SD3 puts in the place of an absent T5.

    diffusers does not load an SD3 folder that has no third text encoder unless the caller passes None for it.
    """
    width = sum(recipe.text.widths)
    config = T5Config(
        vocab_size=len(vocabulary()),
        d_model=width,
        d_kv=1,
        d_ff=1,
        num_heads=1,
        num_layers=0,
        num_decoder_layers=0,
        pad_token_id=PAD,
        eos_token_id=EOS,
        dtype="float32",
    )
    encoder = T5EncoderModel(config)
    torch.nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    torch.nn.init.zeros_(encoder.shared.weight)
    return encoder


def build_pipeline(recipe: Recipe) -> Pipeline:
    """A pipeline with fresh weights, drawn from the recipe's seed, in float32."""
    torch.manual_seed(recipe.seed)
    return StableDiffusion3Pipeline(
        vae=build_autoencoder(recipe),
        text_encoder=build_text_encoder(recipe, 0),
        text_encoder_2=build_text_encoder(recipe, 1),
        text_encoder_3=build_mute_t5(recipe),
        tokenizer=build_tokenizer(),
        tokenizer_2=build_tokenizer(),
        tokenizer_3=build_mute_tokenizer(),
        transformer=build_transformer(recipe),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )


def save_pipeline(pipeline: Pipeline, folder: Path) -> None:
    """Write float16 safetensors that `DiffusionPipeline.from_pretrained(folder)` loads with no further argument.

    The pipeline itself comes back in float32.
    """
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    pipeline.to(dtype=torch.float32)
    for encoder in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        # transformers loads in the type that is named here, and the rest of the pipeline runs in float32.
        path = folder / encoder / "config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(values | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
