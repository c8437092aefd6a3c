"""Pipelines from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline

from visalign.pipelines import options
from visalign.pipelines.pipeline import Pipeline
from visalign.types import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXPECTED = (
    "a folder with model_index.json and safetensors weights (pipe.save_pretrained), or a hub id such as owner/name"
)


def load_pipeline(
    model: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    attention: str = "auto",
    compile: bool = False,
    quantise: Literal["int8", "nf4"] | None = None,
    offload: Literal["model", "sequential"] | None = None,
    tiling: bool = False,
) -> Pipeline:
    """A pipeline under control from a folder or the hub; safetensors only, and never code from the hub.

    Safety checkers and watermarks are left out: they replace or change pixels that a reward is to judge, and stop
    gradients.

    Args:
        model: folder or hub id.
        dtype: float32, bfloat16 or float16, for all weights.
        device: `auto` is CUDA where there is one.
        attention: `auto` is torch's scaled dot product attention; see `options.attention` for others.
        compile: whether to torch.compile the denoisers.
        quantise: hold the denoisers' large layers in 8 or 4 bits.
        offload: keep weights on the CPU until they are used, by component or by layer (for inference only).
        tiling: whether the autoencoder works in tiles.

    Returns:
        The pipeline. What it was asked for is compared with the plain run at its first use (see `options`).

    Raises:
        InputError: if there is no such pipeline, or an option is unknown, unavailable or changes the result.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not known; known are {', '.join(DTYPES)}")
    pipeline = Pipeline(_read(model, DTYPES[dtype]))
    if quantise is not None:
        for name, denoiser in pipeline.denoisers.items():
            pipeline.measured[f"{quantise} {name}"] = options.quantise(denoiser, quantise)
    _place(pipeline.pipe, device, offload)
    if attention != "auto":
        pipeline.pending.append(options.attention(attention, pipeline.dtype))
    if compile:
        pipeline.pending.append(options.compiled(pipeline.dtype))
    if tiling:
        pipeline.pending.append(options.tiled())
    return pipeline


def _read(model: str | Path, dtype: torch.dtype) -> Any:
    path = Path(model)
    if path.is_file():
        raise InputError(f"{str(model)!r} is a single file; expected is {EXPECTED}")
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise InputError(f"the folder {str(model)!r} has no model_index.json; expected is {EXPECTED}")
    if not path.is_dir() and (path.is_absolute() or len(path.parts) != 2):
        raise InputError(f"there is no folder {str(model)!r}; expected is {EXPECTED}")
    try:
        pipe: Any = DiffusionPipeline.from_pretrained(str(model), dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(model)!r} could not be loaded: {error}; expected is {EXPECTED}") from error
    if "safety_checker" in pipe.components:
        pipe.safety_checker = None
    if "watermark" in vars(pipe):
        pipe.watermark = None
    return pipe


def _place(pipe: Any, device: str, offload: str | None) -> None:
    chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if offload is None:
        pipe.to(chosen)
        return
    if torch.device(chosen).type == "cpu":
        raise InputError(f"offload {offload!r} needs an accelerator to move weights to; leave it out on {chosen}")
    switch = pipe.enable_model_cpu_offload if offload == "model" else pipe.enable_sequential_cpu_offload
    switch(device=chosen)
