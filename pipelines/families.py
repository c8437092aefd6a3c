"""The known families, by the beginning of their classes' names."""

from __future__ import annotations

import dataclasses
from typing import Any

from visalign.pipelines.family import Family, attention_projections
from visalign.pipelines.images import as_one_picture, as_pictures


def _wan_timesteps(pipe: Any) -> str:
    if pipe.config.get("boundary_ratio") is not None:
        return "its timestep chooses between two denoisers; give one timestep for all rows"
    if pipe.config.get("expand_timesteps"):
        return "it spreads one timestep over all tokens; give one timestep for all rows"
    return ""


def _one_timestep(pipe: Any) -> str:
    return "it repeats one timestep over the batch; give one timestep for all rows"


def _decodes_with_noise(pipe: Any) -> bool:
    return bool(pipe.vae.config.timestep_conditioning)


UNET = Family(name="unet", training_guidance=5.0)
FLUX = Family(name="flux", guidance_in_batch=False, training_guidance=3.5)
QWEN = Family(
    name="qwen", guidance="true_cfg_scale", guidance_in_batch=False, negative_prompt=" ", training_guidance=4.0
)
HUNYUAN = Family(name="hunyuan", guidance_in_batch=False, training_guidance=6.0, fps=24)

# The longest beginning that fits counts.
FAMILIES = {
    "Chroma": Family(name="chroma", guidance_in_batch=False, training_guidance=3.0),
    "CogVideoX": Family(name="cogvideox", training_guidance=6.0, fps=8),
    "Flux": FLUX,
    "Flux2": dataclasses.replace(FLUX, name="flux2", images=as_one_picture),
    "HunyuanVideo": HUNYUAN,
    "HunyuanVideo15": dataclasses.replace(HUNYUAN, name="hunyuan15", guidance="guider"),
    "Kandinsky5": Family(name="kandinsky5", training_guidance=5.0, fps=24, why_not_per_sample=_one_timestep),
    "LTX": Family(name="ltx", training_guidance=3.0, fps=25, lone_generator=_decodes_with_noise),
    "LTX2": Family(name="ltx2", training_guidance=4.0, fps=24),
    "LatentConsistency": Family(name="lcm", guidance_in_batch=False, training_guidance=8.5),
    "Lumina2": Family(name="lumina2", guidance_in_batch=False, training_guidance=4.0),
    "Mochi": Family(name="mochi", training_guidance=4.5, fps=30),
    "PixArt": Family(name="pixart", training_guidance=4.5),
    "QwenImage": QWEN,
    "QwenImageEdit": dataclasses.replace(QWEN, images=as_pictures),
    "Sana": Family(name="sana", training_guidance=4.5),
    "StableDiffusion": UNET,
    "StableDiffusion3": Family(name="sd3", training_guidance=4.5),
    "Wan": Family(
        name="wan",
        guidance_in_batch=False,
        training_guidance=5.0,
        fps=16,
        images=as_one_picture,
        why_not_per_sample=_wan_timesteps,
    ),
    "ZImage": Family(name="z_image", training_guidance=4.0),
}


def family_of(pipe: Any) -> Family:
    """The family of a pipeline, with what can be read off the pipeline itself.

    Args:
        pipe: any diffusers pipeline.

    Returns:
        Its family; the default one if no name fits.
    """
    kind, parts = type(pipe), pipe.components
    known = [prefix for prefix in FAMILIES if kind.__name__.startswith(prefix)]
    family = FAMILIES[max(known, key=len)] if known else Family()
    denoisers = [parts[name] for name in family.denoisers if parts.get(name) is not None]
    return dataclasses.replace(
        family,
        lora_targets=family.lora_targets or attention_projections(denoisers),
        lora_loader="load_lora_weights" in dir(kind),
    )
