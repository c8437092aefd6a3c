"""Tiny flow-matching and PixArt transformers that make an image from a prompt, beyond SD3 and FLUX.1."""

from __future__ import annotations

from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from tests.tiny_image import flux_scheduler
from tests.tiny_parts import SIZE, TOKENS, WAN_SHAPE, WIDTH, both, case, ddim, embeds, flow, flow_vae, size, tiny, vae

TEXTLESS = {"text_encoder": None, "tokenizer": None}
MASKED = ("prompt_embeds", "prompt_attention_mask")
PLAIN = {"use_resolution_binning": False, "clean_caption": False, "negative_prompt": None}


def flux2_parts(guidance_embeds):
    """Components of FLUX.2 without texts."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    shape = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": SIZE}
    net = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    autoencoder = AutoencoderKLFlux2(latent_channels=4, **blocks, **shape)
    return {"vae": autoencoder, "transformer": net, "scheduler": flux_scheduler(), **TEXTLESS}


@tiny
def flux2():
    pipe = Flux2Pipeline(**flux2_parts(guidance_embeds=True))
    return case(pipe, {"prompt_embeds": embeds()}, guidance_scale=4.0, **size())


@tiny
def flux2_klein():
    return case(Flux2KleinPipeline(**flux2_parts(guidance_embeds=False)), both("prompt_embeds"), **size())


@tiny
def chroma():
    net = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_hidden_dim=32,
        approximator_num_channels=8,
        approximator_layers=1,
    )
    pipe = ChromaPipeline(vae=flow_vae(), transformer=net, scheduler=flow(), **TEXTLESS)
    return case(pipe, both(*MASKED), **size())


def qwen_parts():
    """Components of Qwen-Image without texts."""
    net = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = flux_scheduler(max_shift=0.9, shift_terminal=0.02)
    return {"vae": AutoencoderKLQwenImage(**WAN_SHAPE), "transformer": net, "scheduler": scheduler, **TEXTLESS}


@tiny
def qwen_image():
    tensors = both("prompt_embeds", "prompt_embeds_mask")
    return case(QwenImagePipeline(**qwen_parts()), tensors, true_cfg_scale=1.0, **size())


@tiny
def z_image():
    net = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[128, 32, 32],
    )
    pipe = ZImagePipeline(vae=flow_vae(), transformer=net, scheduler=flow(), **TEXTLESS)
    tensors = {name: [rows[0], rows[1, :-2]] for name, rows in both("prompt_embeds").items()}
    return case(pipe, tensors, guidance_scale=0.0, **size())


@tiny
def krea2():
    net = Krea2Transformer2DModel(
        in_channels=64,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=32,
        text_hidden_dim=WIDTH,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = Krea2Pipeline(**{**qwen_parts(), "transformer": net}, text_encoder_select_layers=(0, 1))
    stacks = {prefix + "prompt_embeds": embeds(TOKENS, 2, WIDTH) for prefix in ("", "negative_")}
    return case(pipe, stacks | both("prompt_embeds_mask"), guidance_scale=0.0, **size())


def sana_pipe(scheduler):
    """Sana with its deep-compression autoencoder."""
    blocks = ("ResBlock", "EfficientViTBlock", "EfficientViTBlock")
    layers = {"block_out_channels": (8, 8, 16), "block_types": blocks, "layers_per_block": (1, 1, 1)}
    sides = {side + name: value for name, value in layers.items() for side in ("encoder_", "decoder_")}
    scales = {"encoder_qkv_multiscales": ((), (), (5,)), "decoder_qkv_multiscales": ((), (), (5,))}
    autoencoder = AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, **sides, **scales)
    net = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=8,
    )
    return SanaPipeline(vae=autoencoder, transformer=net, scheduler=scheduler, **TEXTLESS)


@tiny
def sana():
    return case(sana_pipe(flow()), both(*MASKED), **PLAIN, **size())


@tiny
def sana_dpm():
    flows = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return case(sana_pipe(DPMSolverMultistepScheduler(**flows)), both(*MASKED), **PLAIN, **size())


def pixart_pipe(scheduler):
    """PixArt-Sigma, whose transformer also returns a variance."""
    net = PixArtTransformer2DModel(
        in_channels=4,
        out_channels=8,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=8,
    )
    return PixArtSigmaPipeline(vae=vae(), transformer=net, scheduler=scheduler, **TEXTLESS)


@tiny
def pixart_sigma():
    return case(pixart_pipe(ddim()), both(*MASKED), **PLAIN, **size())


@tiny
def pixart_sigma_dpm():
    return case(pixart_pipe(DPMSolverMultistepScheduler()), both(*MASKED), **PLAIN, **size())


@tiny
def lumina2():
    net = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(64, 32, 32),
        cap_feat_dim=WIDTH,
    )
    pipe = Lumina2Pipeline(vae=flow_vae(levels=4), transformer=net, scheduler=flow(shift=6.0), **TEXTLESS)
    return case(pipe, both(*MASKED), **size())
