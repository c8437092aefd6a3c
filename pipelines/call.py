"""The arguments of a pipeline's `__call__` for a conditioning."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from visalign.pipelines.family import Family
from visalign.types import Conditioning, InputError

# Arguments that make a step depend on its position among the steps that are visited, not on its timestep.
POSITIONAL = (
    "skip_guidance_layers",
    "control_guidance_start",
    "control_guidance_end",
    "cfg_trunc_ratio",
    "denoising_start",
    "denoising_end",
)
OURS = ("generator", "latents", "num_inference_steps", "output_type", "return_dict", "callback_on_step_end")


def arguments(
    pipe: Any, family: Family, conditioning: Conditioning, num_steps: int, seeds: Sequence[int] | None, output_type: str
) -> dict[str, Any]:
    """All arguments of one call.

    Args:
        pipe: any diffusers pipeline.
        family: its family.
        conditioning: B rows.
        num_steps: denoising steps.
        seeds: one a row for the noise; None where the noise does not matter.
        output_type: `pt` or `latent`.

    Raises:
        InputError: if the conditioning holds an argument that the pipeline does not take.
    """
    rows = len(conditioning)
    seeds = range(rows) if seeds is None else seeds
    known = taken_by(type(pipe).__call__)
    call: dict[str, Any] = {
        "num_inference_steps": num_steps,
        "generator": lone_generator(pipe, seeds) if family.lone_generator(pipe) else noise_generators(seeds),
        "output_type": output_type,
    }
    if conditioning.prompts.images:
        call["image"] = family.images(conditioning.prompts.images)
    if not any(name.startswith("prompt_embeds") for name in conditioning.tensors):
        call["prompt"] = list(conditioning.prompts.texts)
    call.update(conditioning.call)
    call.update(conditioning.tensors)
    _guide(call, family, conditioning, known)
    _check(call, conditioning, type(pipe).__name__, known)
    if isinstance(call.get("negative_prompt"), str):
        call["negative_prompt"] = [call["negative_prompt"]] * rows
    return call


@functools.cache
def taken_by(function: Callable) -> frozenset[str]:
    """The names of a function's arguments."""
    return frozenset(inspect.signature(function).parameters)


def noise_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator a row, so that a row's noise depends on its seed alone."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def lone_generator(pipe: Any, seeds: Sequence[int]) -> torch.Generator:
    """One generator for all rows, on the pipeline's device, for pipelines that take no list of them."""
    return torch.Generator(pipe._execution_device).manual_seed(seeds[0])


def _guide(call: dict[str, Any], family: Family, conditioning: Conditioning, known: frozenset[str]) -> None:
    scale = conditioning.guidance_scale
    if family.guidance in known:
        call.setdefault(family.guidance, scale)
    elif scale != 1 and family.guidance != "guider":
        raise InputError(
            f"guidance_scale {scale} was asked for, but this pipeline takes no {family.guidance!r} argument; "
            "use guidance_scale 1"
        )
    needs_negative = family.negative_prompt is not None and scale > 1 and "prompt" in call
    if needs_negative:
        call.setdefault("negative_prompt", family.negative_prompt)


def check_positional(conditioning: Conditioning) -> None:
    """Checks that steps can be visited one by one.

    Raises:
        InputError: if an argument makes a step depend on its position among those that are visited.
    """
    found = [name for name in POSITIONAL if name in conditioning.call]
    if found:
        raise InputError(
            f"{', '.join(found)} of the conditioning count the steps that are visited, so a stored state cannot be "
            "replayed alone; leave them out"
        )


def _check(call: dict[str, Any], conditioning: Conditioning, name: str, known: frozenset[str]) -> None:
    given = [*conditioning.call, *conditioning.tensors]
    ours = [key for key in given if key in OURS]
    if ours:
        raise InputError(f"{', '.join(ours)} cannot be given in a conditioning: visalign sets it; leave it out")
    unknown = [key for key in call if key not in known]
    if unknown:
        taken = ", ".join(sorted(known - {"self", *OURS}))
        raise InputError(f"{name} takes no argument {', '.join(unknown)}; it takes {taken}")
