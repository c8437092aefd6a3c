"""Tiny pipelines that start from an image: img2img, inpainting, ControlNet, editing."""

from __future__ import annotations

import torch
from diffusers import (
    ControlNetModel,
    Flux2Pipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    QwenImageEditPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

from tests.tiny_flow import flux2_parts, qwen_parts
from tests.tiny_image import POOLED, euler, flux_parts, flux_prompts, sd3_parts, sd15_parts, sdxl_parts, unet
from tests.tiny_parts import SIZE, both, case, embeds, masks, pictures, size, tiny

PARTLY = {"strength": 0.75, "num_steps": 4}  # three of four steps are run


@tiny
def sd15_img2img():
    pipe = StableDiffusionImg2ImgPipeline(**sd15_parts())
    return case(pipe, both("prompt_embeds"), images=pictures(), **PARTLY)


@tiny
def sd15_inpaint():
    """The inpainting model proper: nine input channels."""
    pipe = StableDiffusionInpaintPipeline(**sd15_parts(unet=unet(in_channels=9)))
    return case(pipe, both("prompt_embeds") | {"mask_image": masks()}, images=pictures(), **size())


@tiny
def sd15_inpaint_plain():
    """Inpainting with a text-to-image model: the known pixels are put back after every step."""
    pipe = StableDiffusionInpaintPipeline(**sd15_parts())
    return case(pipe, both("prompt_embeds") | {"mask_image": masks()}, images=pictures(), **PARTLY, **size())


def controlnet():
    return ControlNetModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=32,
        conditioning_embedding_out_channels=(8, 8, 8),
    )


def controlled(pipeline, name, **options):
    """Stable Diffusion 1.5 steered by a control image, whose embedding is made strong enough to be seen."""
    tensors = both("prompt_embeds") | {name: torch.stack(pictures())}
    made = case(pipeline(**sd15_parts(controlnet=controlnet())), tensors, **options, **size())
    made.pipe.controlnet.controlnet_cond_embedding.conv_out.weight.data.mul_(16)
    return made


@tiny
def sd15_controlnet():
    return controlled(StableDiffusionControlNetPipeline, "image")


@tiny
def sd15_controlnet_img2img():
    pipeline = StableDiffusionControlNetImg2ImgPipeline
    return controlled(pipeline, "control_image", images=pictures(), **PARTLY)


@tiny
def sdxl_img2img():
    pipe = StableDiffusionXLImg2ImgPipeline(**sdxl_parts(euler()))
    return case(pipe, both(*POOLED), images=pictures(), **PARTLY)


@tiny
def sd3_img2img():
    pipe = StableDiffusion3Img2ImgPipeline(**sd3_parts())
    return case(pipe, both(*POOLED), images=pictures(), **PARTLY, **size())


@tiny
def flux_kontext():
    pipe = FluxKontextPipeline(**flux_parts(guidance_embeds=True))
    unresized = {"max_area": SIZE**2, "_auto_resize": False}
    return case(pipe, flux_prompts(), guidance_scale=2.5, images=pictures(), **unresized, **size())


@tiny
def flux_img2img():
    pipe = FluxImg2ImgPipeline(**flux_parts(guidance_embeds=True))
    return case(pipe, flux_prompts(), guidance_scale=3.5, images=pictures(), **PARTLY, **size())


@tiny
def flux2_edit():
    """FLUX.2 with a reference picture, which serves all rows."""
    pipe = Flux2Pipeline(**flux2_parts(guidance_embeds=True))
    references = pictures(64)  # it refuses smaller ones
    tensors = {"prompt_embeds": embeds()}
    return case(pipe, tensors, guidance_scale=4.0, images=references, image_form="single", **size())


@tiny
def sdxl_inpaint():
    pipe = StableDiffusionXLInpaintPipeline(**sdxl_parts(euler()))
    return case(pipe, both(*POOLED) | {"mask_image": masks()}, images=pictures(), **PARTLY, **size())


@tiny
def flux_inpaint():
    pipe = FluxInpaintPipeline(**flux_parts(guidance_embeds=True))
    tensors = flux_prompts() | {"mask_image": masks()}
    return case(pipe, tensors, guidance_scale=3.5, images=pictures(), **PARTLY, **size())


@tiny
def flux_fill():
    """Input channels: packed noise 16, packed masked image 16, packed mask (2·4)²."""
    pipe = FluxFillPipeline(**flux_parts(guidance_embeds=True, in_channels=96, out_channels=16))
    tensors = flux_prompts() | {"mask_image": masks()}
    return case(pipe, tensors, guidance_scale=30.0, images=pictures(), **size())


@tiny
def qwen_image_edit():
    keep_small(pipeline_qwenimage_edit)
    pipe = QwenImageEditPipeline(**qwen_parts(), processor=None)
    tensors = both("prompt_embeds", "prompt_embeds_mask")
    return case(pipe, tensors, images=pictures(), image_form="pil", true_cfg_scale=1.0, **size())


def keep_small(module) -> None:
    """Let an editing pipeline keep inputs at `SIZE` that it would otherwise resize to about one megapixel."""
    module.calculate_dimensions = lambda area, ratio: (SIZE, SIZE, None)
