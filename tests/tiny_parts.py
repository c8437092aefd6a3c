"""What the tiny pipelines are made of: the case itself, seeded weights, schedulers, autoencoders, texts and pictures.

Everything is a real class at tiny size, built from its config: nothing is downloaded and nothing is mocked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

ROWS = 2
SIZE = 32  # pixels a side
TOKENS = 6  # length of the prompt embeddings
WIDTH = 32  # width of the prompt embeddings
LENGTH = 16  # tokens of an encoded text
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "black")
NOUNS = ("circle", "square", "triangle", "star", "cross", "cat", "dog", "picture", "drawing", "image", "photo")
SMALL = (
    "a",
    "an",
    "one",
    "single",
    "two",
    "three",
    "four",
    "left",
    "right",
    "above",
    "below",
    "of",
    "and",
    "with",
    "the",
)
WORDS = (*COLORS, *NOUNS, *(noun + "s" for noun in NOUNS), *SMALL)

CASES: dict[str, Callable[[], TinyCase]] = {}


@dataclass(frozen=True)
class TinyCase:
    """One tiny pipeline with the arguments of a call for two rows.

    Attributes:
        pipe: the pipeline in eval mode; text encoders and tokenizers are None unless the case is about them.
        tensors: batch-first call arguments, tensors (2, …) or lists of 2. Empty where the texts are to be encoded.
        call: arguments that hold for all rows (height, width, num_frames, …).
        guidance_scale: 1.0 where the pipeline runs without classifier-free guidance.
        images: conditioning images (3, H, W) in [0, 1], one a row, for the argument `image`; empty if there is none.
            Masks and control images stand in `tensors` under the pipeline's own names.
        num_steps: steps to ask for; where a strength is in `call`, three of them are run.
        image_form: what the pipeline takes as `image`: `tensor` (2, 3, H, W), `pil` (a list of PIL images, no tensors),
            or `single` (one PIL image that serves all rows).
    """

    pipe: DiffusionPipeline
    tensors: dict[str, Any]
    call: dict[str, Any]
    guidance_scale: float
    images: tuple[Tensor, ...]
    num_steps: int = 3
    image_form: str = "tensor"


def tiny(builder: Callable[[], TinyCase]) -> Callable[[], TinyCase]:
    """Register a builder under its name; its random draws are seeded and leave the global generator alone."""

    @functools.wraps(builder)
    def seeded() -> TinyCase:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return builder()

    CASES[builder.__name__] = seeded
    return seeded


def case(pipe, tensors, guidance_scale=1.0, images=(), num_steps=3, image_form="tensor", **call) -> TinyCase:
    """A finished case: weights redrawn, every module in eval mode, no progress bar."""
    for name, module in networks(pipe).items():
        redraw(module.eval(), seed=crc32(name.encode()))
    pipe.set_progress_bar_config(disable=True)
    return TinyCase(pipe, tensors, call, guidance_scale, images, num_steps, image_form)


def networks(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """All neural networks of a pipeline by component name."""
    return {name: c for name, c in pipe.components.items() if isinstance(c, nn.Module)}


def redraw(module: nn.Module, seed: int) -> None:
    """Draw all weights anew, so that none is zero (adaLN-zero, output layers) or unset (`torch.empty`)."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=p[0].numel() ** -0.5, generator=generator)
        else:
            nn.init.normal_(p, mean=float(name.endswith("weight")), std=0.1, generator=generator)


def size(pixels: int = SIZE) -> dict[str, int]:
    """Height and width as call arguments."""
    return {"height": pixels, "width": pixels}


def embeds(*shape: int) -> Tensor:
    """Random embeddings, (2, *shape); by default (2, 6, 32)."""
    return torch.randn(ROWS, *(shape or (TOKENS, WIDTH)))


def both(*names: str, width: int = WIDTH, tokens: int = TOKENS) -> dict[str, Tensor]:
    """Prompt embeddings and their negative twins; names with `pooled` are vectors, those with `mask` masks."""
    made = {}
    for name in (prefix + name for name in names for prefix in ("", "negative_")):
        if "mask" in name:
            made[name] = token_mask(tokens)
        else:
            made[name] = embeds(width) if "pooled" in name else embeds(tokens, width)
    return made


def token_mask(tokens: int = TOKENS) -> Tensor:
    """Which tokens count, (2, tokens): all of the first row, all but the last two of the second."""
    return torch.arange(tokens) < torch.tensor([[tokens], [tokens - 2]])


def pictures(pixels: int = SIZE) -> tuple[Tensor, ...]:
    """One smooth picture (3, H, W) in [0, 1] for each row."""
    return tuple(nn.functional.interpolate(torch.rand(ROWS, 3, 4, 4).round(), (pixels, pixels), mode="bilinear"))


def masks(pixels: int = SIZE) -> Tensor:
    """Masks (2, 1, H, W): the left half of the first picture and the top half of the second."""
    mask = torch.zeros(ROWS, 1, pixels, pixels)
    mask[0, :, :, : pixels // 2] = mask[1, :, : pixels // 2] = 1
    return mask


def vae(channels: int = 4, levels: int = 3, **config: Any) -> AutoencoderKL:
    """An image autoencoder that shrinks by 2^(levels - 1)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=SIZE,
        **config,
    )


def flow_vae(channels: int = 4, levels: int = 3) -> AutoencoderKL:
    """The image autoencoder as SD3 and FLUX configure it."""
    shift = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    return vae(channels, levels, use_quant_conv=False, use_post_quant_conv=False, **shift)


WAN_SHAPE = {"base_dim": 6, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


def wan_vae() -> AutoencoderKLWan:
    """A video autoencoder that shrinks by 8 in space and 4 in time."""
    return AutoencoderKLWan(**WAN_SHAPE)


def flow(shift: float = 3.0, **config: Any) -> FlowMatchEulerDiscreteScheduler:
    """The flow-matching Euler scheduler."""
    return FlowMatchEulerDiscreteScheduler(shift=shift, **config)


def ddim(**config: Any) -> DDIMScheduler:
    """DDIM with the noise schedule of Stable Diffusion."""
    fixed = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return DDIMScheduler(**BETAS, **fixed, **config)


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tokenizer(length: int = LENGTH) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows `WORDS`: <s> words </s>, padded to `length`."""
    vocab = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=length, **names)


CLIP_SHAPE = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def clip_config(width: int = WIDTH, length: int = LENGTH) -> CLIPTextConfig:
    """Configuration of a two-layer CLIP text encoder for `tokenizer`."""
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(WORDS) + 4}
    shape = {**CLIP_SHAPE, "hidden_size": width}
    return CLIPTextConfig(max_position_embeddings=length, projection_dim=width, **shape, **ids)


def clip(width: int = WIDTH) -> CLIPTextModel:
    """A CLIP text encoder."""
    return CLIPTextModel(clip_config(width))


def pooled_clip(width: int = WIDTH) -> CLIPTextModelWithProjection:
    """A CLIP text encoder with a projected pooled embedding."""
    return CLIPTextModelWithProjection(clip_config(width))


def t5() -> T5EncoderModel:
    """A T5 encoder."""
    shape = {"d_model": WIDTH, "d_ff": WIDTH, "d_kv": 8, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=len(WORDS) + 4, **shape))
