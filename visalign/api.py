"""Models and rewards by name, for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from visalign import registry
from visalign.section import nearest
from visalign.types import InputError

if TYPE_CHECKING:
    from visalign.pipelines.pipeline import Pipeline
    from visalign.rewards.base import Reward


def model_source(name: str) -> str:
    """What `from_pretrained` is given for a model's name: the folder of a built-in one, else the name itself.

    Raises:
        InputError: the built-in model does not exist, or was not shipped.

    Example:
        >>> model_source("stabilityai/stable-diffusion-3.5-medium")
        'stabilityai/stable-diffusion-3.5-medium'
    """
    if not name.startswith("shapes/"):
        return name
    known = registry.names("models")
    if name not in known:
        raise InputError(f"unknown model {name!r}.{nearest(name, known)} Built in: {', '.join(known)}")
    folder = registry.load("models", name)(name.removeprefix("shapes/"))
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"the model {name!r} is not in {str(folder)!r}; make it with: visalign shapes train {name[7:]}"
        )
    return str(folder)


def load_pipeline(
    name: str,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    attention: str = "auto",
    compile: bool = False,
    quantise: Literal["int8", "nf4"] | None = None,
    offload: Literal["model", "sequential"] | None = None,
    tiling: bool = False,
) -> Pipeline:
    """A diffusers pipeline under control.

    Args:
        name: a built-in model (`shapes/sd3`), a diffusers folder, or a hub id.
        dtype: of the weights.
        device: `auto` is the GPU where there is one.
        attention: `auto` (SDPA), `xformers`, or a diffusers backend by name.
        compile: compile the denoiser.
        quantise: weights of the denoiser.
        offload: keep the parts on the CPU that do not work.
        tiling: decode in tiles.

    Raises:
        InputError: the model is not found, or an option does not fit it.
    """
    from visalign.pipelines import loading

    return loading.load_pipeline(
        model_source(name),
        dtype=dtype,
        device=device,
        attention=attention,
        compile=compile,
        quantise=quantise,
        offload=offload,
        tiling=tiling,
    )


def load_reward(name: str, params: Mapping[str, Any] | None = None) -> Reward:
    """A reward by short name, entry point, or dotted path to a class or a plain function.

    Args:
        name: see `visalign list rewards`.
        params: its options.

    Raises:
        InputError: the name is unknown, or the reward does not take these params.

    Example:
        >>> load_reward("jpeg_size").spec.name
        'jpeg_size'
    """
    from visalign.scoring import build_reward

    return build_reward(name, params)
