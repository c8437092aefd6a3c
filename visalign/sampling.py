"""Make samples with a model and a LoRA, and write them with what made them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from visalign import shapes
from visalign.api import load_pipeline
from visalign.media_io import write_media
from visalign.types import Conditioning, InputError, Media, Prompts

if TYPE_CHECKING:
    from visalign.pipelines.pipeline import Pipeline


@dataclass(frozen=True)
class Settings:
    """How a pipeline is called.

    Attributes:
        num_steps: denoising steps.
        guidance_scale: of the call.
        call: fixed arguments: height, width, num_frames, …
    """

    num_steps: int
    guidance_scale: float
    call: Mapping[str, Any] = field(default_factory=dict)


def sample(
    model: str | Pipeline,
    prompts: str | Sequence[str] | Prompts,
    *,
    lora: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    num_images: int = 1,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    call: Mapping[str, Any] | None = None,
    batch: int = 8,
    dtype: str = "float32",
    device: str = "auto",
) -> Media:
    """Samples of each prompt.

    Image m of every prompt starts from the noise of `torch.Generator("cpu").manual_seed(seed + m)`, whatever the batch:
    plain diffusers with the same generator gives the same picture.

    Args:
        model: a model's name, folder or hub id, or a loaded pipeline.
        prompts: P prompts.
        lora: folder of a LoRA. Where it lies in a run's folder, that run's settings are the defaults below.
        out: folder to write PNG or MP4 files to, with prompt, seed, model and settings in their metadata.
        seed: of the first image.
        num_images: images a prompt.
        num_steps: denoising steps; None is the run's, else the pipeline's own default.
        guidance_scale: of the call; None is the run's, else the pipeline's own default.
        call: further arguments of the pipeline call; None is the run's.
        batch: rows of one call.
        dtype: of the weights.
        device: `auto` is the GPU where there is one.

    Returns:
        P · num_images rows, the images of a prompt contiguous.

    Raises:
        InputError: the model, the LoRA or a prompt is not usable.
    """
    asked = to_prompts(prompts)
    if num_images < 1 or batch < 1:
        raise InputError(f"num_images is {num_images} and batch is {batch}; both must be at least 1")
    pipeline = load_pipeline(model, dtype=dtype, device=device) if isinstance(model, str) else model  # type: ignore[arg-type]
    if lora is not None:
        load_lora(pipeline, Path(lora))
    found = settings(pipeline, lora, num_steps, guidance_scale, call)
    rows, seeds = asked.repeat(num_images), [seed + m for _ in asked for m in range(num_images)]
    source = {"model": model if isinstance(model, str) else pipeline.name, "lora": None if lora is None else str(lora)}
    parts = []
    for chosen, media in _generate(pipeline, rows, seeds, found, batch):
        if out is not None:  # written as they come, so that a killed run keeps what it made
            _write(Path(out), chosen, media, rows, seeds, {**source, **vars(found)})
        parts.append(media)
    return Media(torch.cat([p.pixels for p in parts]), parts[0].fps)


def to_prompts(prompts: str | Sequence[str] | Prompts) -> Prompts:
    """Prompts from one text, several, or themselves.

    Raises:
        InputError: there are none.
    """
    if isinstance(prompts, str):
        return Prompts((prompts,))
    found = prompts if isinstance(prompts, Prompts) else Prompts(tuple(prompts))
    if not len(found):
        raise InputError('there is no prompt; write for example --prompt "three red circles"')
    return found


def load_lora(pipeline: Pipeline, folder: Path) -> None:
    """Put a LoRA on a pipeline as a user of diffusers does, or where its class cannot, through peft.

    Raises:
        InputError: the folder holds no LoRA, or it fits none of the pipeline's modules.
    """
    from visalign import lora

    lora.load_as_diffusers(pipeline, folder)


def settings(
    pipeline: Pipeline,
    lora: str | Path | None,
    num_steps: int | None,
    guidance_scale: float | None,
    call: Mapping[str, Any] | None,
) -> Settings:
    """What was asked for; else what the LoRA's run used; else the pipeline's own defaults.

    Raises:
        InputError: the pipeline has no default for a setting, so it must be given.
    """
    known = _defaults(pipeline) | (_of_run(Path(lora)) if lora is not None else {})
    asked = {"num_steps": num_steps, "guidance_scale": guidance_scale, "call": call}
    chosen = known | {k: v for k, v in asked.items() if v is not None}
    missing = [k for k in asked if k not in chosen]
    if missing:
        raise InputError(f"{pipeline.name} has no default for {' and '.join(missing)}; give it")
    return Settings(int(chosen["num_steps"]), float(chosen["guidance_scale"]), chosen["call"])


def _defaults(pipeline: Pipeline) -> dict[str, Any]:
    parameters = inspect.signature(type(pipeline.pipe).__call__).parameters
    names = {"num_steps": "num_inference_steps", "guidance_scale": pipeline.family.guidance}
    found = {k: parameters[v].default for k, v in names.items() if v in parameters}
    known = {"guidance_scale": 1.0, "call": {}} | {k: v for k, v in found.items() if isinstance(v, int | float)}
    built_in = Path(pipeline.pipe.config.get("_name_or_path", "")).parent == shapes.FOLDER
    return known | (shapes.SETTINGS if built_in else {})


def _of_run(lora: Path) -> dict[str, Any]:
    path = lora.parent / "config.yaml"
    if not path.is_file():
        return {}
    run = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = run["evaluation"]["num_steps"] or run["rollout"]["num_steps"]
    return {"num_steps": steps, "guidance_scale": run["rollout"]["guidance_scale"], "call": run["model"]["call"]}


def _generate(
    pipeline: Pipeline, rows: Prompts, seeds: Sequence[int], found: Settings, batch: int
) -> Iterator[tuple[range, Media]]:
    for start in range(0, len(rows), batch):
        chosen = range(start, min(start + batch, len(rows)))
        conditioning = Conditioning(rows.take(chosen), found.guidance_scale, found.call)
        media = pipeline.rollout(conditioning, [seeds[r] for r in chosen], found.num_steps).media
        assert media is not None
        yield chosen, Media(media.pixels.cpu(), media.fps)


def _write(out: Path, chosen: range, media: Media, rows: Prompts, seeds: Sequence[int], how: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for place, row in enumerate(chosen):
        metadata = {"prompt": rows.texts[row], "seed": seeds[row], **how}
        write_media(out / f"{row:03d}", media.take([place]), metadata)
