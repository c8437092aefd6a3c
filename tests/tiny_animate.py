"""Tiny pipelines that make a video from a prompt and a first frame, or a video with sound."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXImageToVideoPipeline,
    WanImageToVideoPipeline,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from tests.tiny_parts import CLIP_SHAPE, SIZE, WIDTH, both, case, pictures, size, tiny
from tests.tiny_video import FRAMES, SHIFTED, cogvideox_parts, ltx_parts, ltx_scheduler, unipc, wan_parts

ANIMATED = {"image_form": "single", "num_frames": FRAMES}


@tiny
def wan_i2v():
    """Wan 2.2: the first frame enters by extra channels (latent 16 and mask 4)."""
    pipe = WanImageToVideoPipeline(**wan_parts(in_channels=36))
    return case(pipe, both("prompt_embeds"), images=pictures(), **ANIMATED, **size())


@tiny
def wan21_i2v():
    """Wan 2.1: the first frame enters by extra channels and by its CLIP embedding, which is told from the text by
    the text being 512 tokens long.
    """
    vision = CLIPVisionConfig(**CLIP_SHAPE, image_size=SIZE, patch_size=16)
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE)
    parts = wan_parts(unipc(), in_channels=36, image_dim=WIDTH, added_kv_proj_dim=24)
    pipe = WanImageToVideoPipeline(**parts, image_encoder=CLIPVisionModel(vision), image_processor=processor)
    return case(pipe, both("prompt_embeds", tokens=512), images=pictures(), **ANIMATED, **size())


@tiny
def wan_ti2v_image():
    """Wan 2.2 5B: the first frame is held clean, a timestep for each token."""
    pipe = WanImageToVideoPipeline(**wan_parts(unipc()), expand_timesteps=True)
    return case(pipe, both("prompt_embeds"), images=pictures(), **ANIMATED, **size())


@tiny
def ltx_i2v():
    tensors = both("prompt_embeds", "prompt_attention_mask")
    return case(LTXImageToVideoPipeline(**ltx_parts()), tensors, images=pictures(), num_frames=FRAMES, **size())


@tiny
def cogvideox_i2v():
    scheduler = CogVideoXDDIMScheduler(snr_shift_scale=3.0, **SHIFTED)
    pipe = CogVideoXImageToVideoPipeline(**cogvideox_parts(scheduler, in_channels=8))
    return case(pipe, both("prompt_embeds"), images=pictures(), num_frames=9, **size())


def ltx2_vae():
    one = {"block_out_channels": (8,), "layers_per_block": (1,), "spatio_temporal_scaling": (True,)}
    decoder = {"decoder_" + name: value for name, value in one.items()} | {"decoder_layers_per_block": (1, 1)}
    once = {"downsample_type": ("spatial",), "upsample_residual": (False,), "upsample_factor": (1,)}
    no_noise = {"decoder_inject_noise": (False, False), "patch_size": 1}
    return AutoencoderKLLTX2Video(latent_channels=4, **one, **decoder, **once, **no_noise)


def ltx2_audio():
    """Autoencoder of the sound's spectrogram, and the vocoder that makes a waveform of it."""
    vae = AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    vocoder = LTX2Vocoder(
        in_channels=2 * 8,
        hidden_channels=8,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
    )
    return {"audio_vae": vae, "vocoder": vocoder}


@tiny
def ltx2():
    """Video and sound, two streams with a scheduler each (the second is a deep copy)."""
    rope = {"rope_double_precision": False, "rope_type": "split"}
    net = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=1,
        caption_channels=WIDTH,
        **rope,
    )
    sides = ("num_attention_heads", 2), ("attention_head_dim", 16), ("num_layers", 1), ("num_learnable_registers", None)
    connector = {f"{side}_connector_{name}": value for side in ("video", "audio") for name, value in sides}
    connectors = LTX2TextConnectors(WIDTH, text_proj_in_factor=1, connector_rope_base_seq_len=32, **connector, **rope)
    nothing = {"text_encoder": None, "tokenizer": None}
    nets = {"vae": ltx2_vae(), "transformer": net, "connectors": connectors, **ltx2_audio()}
    pipe = LTX2Pipeline(**nets, scheduler=ltx_scheduler(), **nothing)
    off = {"stg_scale": 0.0, "audio_stg_scale": 0.0, "guidance_rescale": 0.0, "audio_guidance_rescale": 0.0}
    ones = dict.fromkeys(("modality_scale", "audio_modality_scale", "audio_guidance_scale"), 1.0)
    tensors = both("prompt_embeds", "prompt_attention_mask")
    return case(pipe, tensors, num_frames=FRAMES, use_cross_timestep=False, **off, **ones, **size())
