"""Tiny pipelines that make a video from a prompt."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    ClassifierFreeGuidance,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15ByT5TextProjection

from tests.tiny_parts import ROWS, SIZE, TOKENS, WIDTH, both, case, embeds, flow, size, tiny, wan_vae

FRAMES = 5


def wan_transformer(**config):
    return WanTransformer3DModel(
        **{"in_channels": 16, **config},
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )


def wan_parts(scheduler=None, **config):
    """Components of Wan without texts."""
    net = wan_transformer(**config)
    scheduler = scheduler or flow(shift=7.0)
    return {"vae": wan_vae(), "transformer": net, "scheduler": scheduler, "text_encoder": None, "tokenizer": None}


def unipc():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


@tiny
def wan():
    return case(WanPipeline(**wan_parts()), both("prompt_embeds"), num_frames=FRAMES, **size())


@tiny
def wan_unipc():
    return case(WanPipeline(**wan_parts(unipc())), both("prompt_embeds"), num_frames=FRAMES, **size())


@tiny
def wan22():
    pipe = WanPipeline(**wan_parts(unipc()), transformer_2=wan_transformer(), boundary_ratio=0.875)
    return case(pipe, both("prompt_embeds"), num_frames=FRAMES, **size())


@tiny
def wan_ti2v():
    """Wan 2.2 5B: a timestep for each token."""
    pipe = WanPipeline(**wan_parts(unipc()), expand_timesteps=True)
    return case(pipe, both("prompt_embeds"), num_frames=FRAMES, **size())


def ltx_scheduler():
    shift = {"base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1, "max_image_seq_len": 4096}
    return flow(use_dynamic_shifting=True, base_image_seq_len=1024, **shift)


def ltx_parts():
    """Components of LTX-Video without texts."""
    blocks, layers = (8,) * 4, (1,) * 5
    scaling = {"spatio_temporal_scaling": (True, True, False, False)}
    shape = {"block_out_channels": blocks, "layers_per_block": layers, **scaling, "patch_size": 1}
    decoder = {"decoder_" + name: value for name, value in shape.items() if name != "patch_size"}
    net = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=WIDTH,
    )
    return {
        "vae": AutoencoderKLLTXVideo(latent_channels=8, **shape, **decoder),
        "transformer": net,
        "scheduler": ltx_scheduler(),
        "text_encoder": None,
        "tokenizer": None,
    }


@tiny
def ltx():
    tensors = both("prompt_embeds", "prompt_attention_mask")
    return case(LTXPipeline(**ltx_parts()), tensors, num_frames=FRAMES, **size())


def hunyuan_vae():
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


NO_TEXTS = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))


@tiny
def hunyuan_video():
    net = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(4, 4, 4),
    )
    pipe = HunyuanVideoPipeline(transformer=net, vae=hunyuan_vae(), scheduler=flow(shift=7.0), **NO_TEXTS)
    tensors = both("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
    return case(pipe, tensors, guidance_scale=6.0, num_frames=FRAMES, **size())


@tiny
def hunyuan_video15():
    net = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
        target_size=SIZE,
        task_type="t2v",
    )
    net.context_embedder_2 = HunyuanVideo15ByT5TextProjection(WIDTH, 32, 24)  # its width of 2048 is no config field
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    vae.enable_slicing()  # its attention fails on batches of two or more
    guider = ClassifierFreeGuidance(guidance_scale=1.0)
    pipe = HunyuanVideo15Pipeline(transformer=net, vae=vae, scheduler=flow(shift=7.0), guider=guider, **NO_TEXTS)
    tensors = both("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
    return case(pipe, tensors, num_frames=FRAMES, **size())


def cogvideox_parts(scheduler, **config):
    """Components of CogVideoX without texts; the embeddings must be exactly `max_text_seq_length` long."""
    net = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        **{"in_channels": 4, **config},
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=TOKENS,
    )
    vae = AutoencoderKLCogVideoX(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
    )
    return {"transformer": net, "vae": vae, "scheduler": scheduler, "text_encoder": None, "tokenizer": None}


SHIFTED = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@tiny
def cogvideox():
    parts = cogvideox_parts(CogVideoXDDIMScheduler(snr_shift_scale=3.0, **SHIFTED))
    return case(CogVideoXPipeline(**parts), both("prompt_embeds"), num_frames=9, **size())


@tiny
def cogvideox_dpm():
    scheduler = CogVideoXDPMScheduler(snr_shift_scale=1.0, **SHIFTED)
    pipe = CogVideoXPipeline(**cogvideox_parts(scheduler, use_rotary_positional_embeddings=True))
    return case(pipe, both("prompt_embeds"), num_frames=9, **size())


@tiny
def kandinsky5():
    net = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=32,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
    )
    pipe = Kandinsky5T2VPipeline(transformer=net, vae=hunyuan_vae(), scheduler=flow(shift=5.0), **NO_TEXTS)
    pooled = {"prompt_embeds_clip": embeds(WIDTH), "negative_prompt_embeds_clip": embeds(WIDTH)}
    ends = torch.arange(ROWS + 1, dtype=torch.int32) * TOKENS  # not one a row, hence in `call`
    lengths = {"prompt_cu_seqlens": ends, "negative_prompt_cu_seqlens": ends}
    return case(pipe, both("prompt_embeds_qwen") | pooled, num_frames=FRAMES, **lengths, **size())


@tiny
def mochi():
    net = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=TOKENS,
    )
    widths = {"encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4}
    vae = AutoencoderKLMochi(layers_per_block=(1, 0, 0, 0, 1), **widths)
    scheduler = flow(shift=1.0, invert_sigmas=True)
    pipe = MochiPipeline(transformer=net, vae=vae, scheduler=scheduler, text_encoder=None, tokenizer=None)
    return case(pipe, both("prompt_embeds", "prompt_attention_mask"), num_frames=7, **size())
