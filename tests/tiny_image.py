"""Tiny pipelines that make an image from a prompt."""

from __future__ import annotations

from diffusers import (
    EulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from tests.tiny_parts import (
    BETAS,
    LENGTH,
    WIDTH,
    both,
    case,
    clip,
    ddim,
    embeds,
    flow,
    flow_vae,
    pooled_clip,
    size,
    t5,
    tiny,
    tokenizer,
    vae,
)


def unet(**config):
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        **config,
    )


def euler(**config):
    return EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1, **config)


def sd15_parts(scheduler=None, **replaced):
    """Components of Stable Diffusion 1.5 without texts."""
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    own = {"vae": vae(), "unet": unet(), "scheduler": scheduler or ddim(), "requires_safety_checker": False}
    return {**nothing, **own, **replaced}


def sdxl_parts(scheduler):
    """Components of SDXL without texts."""
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    net = unet(**added, projection_class_embeddings_input_dim=WIDTH + 6 * 4, use_linear_projection=True)
    return {**nothing, "vae": vae(scaling_factor=0.13025), "unet": net, "scheduler": scheduler}


def sd3_transformer(**config):
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=16,
        **config,
    )


def sd3_parts(**config):
    """Components of Stable Diffusion 3 without texts."""
    nothing = {f"{name}{i}": None for name in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")}
    return {**nothing, "vae": flow_vae(), "transformer": sd3_transformer(**config), "scheduler": flow()}


def flux_scheduler(**config):
    return flow(use_dynamic_shifting=True, base_image_seq_len=256, max_image_seq_len=4096, **config)


def flux_parts(**config):
    """Components of FLUX.1 without texts."""
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    shape = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    widths = {"joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH, "axes_dims_rope": (4, 6, 6)}
    net = FluxTransformer2DModel(**{"in_channels": 16, **shape, **widths, **config})
    return {**nothing, "vae": flow_vae(), "transformer": net, "scheduler": flux_scheduler()}


def flux_prompts():
    return {"prompt_embeds": embeds(), "pooled_prompt_embeds": embeds(WIDTH)}


POOLED = ("prompt_embeds", "pooled_prompt_embeds")


@tiny
def sd15():
    return case(StableDiffusionPipeline(**sd15_parts()), both("prompt_embeds"), **size())


@tiny
def sd15_euler():
    return case(StableDiffusionPipeline(**sd15_parts(euler())), both("prompt_embeds"), **size())


@tiny
def sd15_v_prediction():
    scheduler = ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    return case(StableDiffusionPipeline(**sd15_parts(scheduler)), both("prompt_embeds"), **size())


@tiny
def sd15_text():
    texts = {"text_encoder": clip(), "tokenizer": tokenizer()}
    return case(StableDiffusionPipeline(**sd15_parts(**texts)), {}, **size())


@tiny
def lcm():
    parts = sd15_parts(LCMScheduler(**BETAS), unet=unet(time_cond_proj_dim=8))
    return case(LatentConsistencyModelPipeline(**parts), {"prompt_embeds": embeds()}, **size())


@tiny
def sdxl():
    return case(StableDiffusionXLPipeline(**sdxl_parts(euler())), both(*POOLED), **size())


@tiny
def sdxl_ddim():
    return case(StableDiffusionXLPipeline(**sdxl_parts(ddim())), both(*POOLED), **size())


@tiny
def sd3():
    return case(StableDiffusion3Pipeline(**sd3_parts()), both(*POOLED), **size())


@tiny
def sd35():
    parts = sd3_parts(qk_norm="rms_norm", dual_attention_layers=(0,))
    return case(StableDiffusion3Pipeline(**parts), both(*POOLED), **size())


@tiny
def sd3_text():
    encoders = {"text_encoder": pooled_clip(16), "text_encoder_2": pooled_clip(16), "text_encoder_3": t5()}
    tokenizers = {f"tokenizer{i}": tokenizer() for i in ("", "_2", "_3")}
    pipe = StableDiffusion3Pipeline(**{**sd3_parts(), **encoders, **tokenizers})
    return case(pipe, {}, max_sequence_length=LENGTH, **size())


@tiny
def flux():
    return case(FluxPipeline(**flux_parts(guidance_embeds=True)), flux_prompts(), guidance_scale=3.5, **size())


@tiny
def flux_true_cfg():
    return case(FluxPipeline(**flux_parts()), both(*POOLED), true_cfg_scale=2.0, **size())
