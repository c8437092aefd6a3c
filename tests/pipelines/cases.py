"""Tiny pipelines under control, with a conditioning of two rows."""

from __future__ import annotations

import torch
from diffusers.utils import logging

from tests.tiny import build
from visalign.pipelines.pipeline import Pipeline
from visalign.types import Conditioning, Prompts

logging.set_verbosity_error()

TEXTS = ("a red circle", "two blue squares")


def controlled(name, dtype=torch.float32, **changed):
    """The tiny case of this name as (Pipeline, Conditioning, num_steps)."""
    case = build(name)
    case.pipe.to(dtype)
    images = (case.images[0],) * 2 if case.image_form == "single" and case.images else case.images
    prompts = Prompts(TEXTS, images=images)
    guidance = changed.pop("guidance_scale", case.guidance_scale)
    conditioning = Conditioning(prompts, guidance, {**case.call, **changed}, of_dtype(case.tensors, dtype))
    return Pipeline(case.pipe), conditioning, case.num_steps


def of_dtype(value, dtype):
    """The tensors in a structure, the floating ones in another dtype."""
    if isinstance(value, dict):
        return {k: of_dtype(v, dtype) for k, v in value.items()}
    if isinstance(value, list):
        return [of_dtype(v, dtype) for v in value]
    return value.to(dtype) if value.is_floating_point() else value


def counted(module):
    """Counts the calls of a module: a list that grows."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def recorded(pipeline, conditioning, num_steps, **options):
    """A rollout by the scheduler's own steps, as (run, list of StepCalls, list of next samples)."""
    steps, following = [], []

    def record(step):
        steps.append(step)
        following.append(step.default())
        return following[-1]

    run = pipeline.rollout(conditioning, [3, 4], num_steps, record, **options)
    return run, steps, following


def close(found, expected, tolerance=1e-5):
    """Whether two tensors agree, relative to the largest number expected."""
    return found.shape == expected.shape and bool(
        (found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-6)
    )


def state_of(thing):
    """What must not change: the class and the attributes of a pipeline or a scheduler."""
    values = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in vars(thing).items()}
    return type(thing), values


def same_state(before, thing):
    """Whether a pipeline or a scheduler is as it was."""
    kind, values = before
    now = vars(thing)
    same = (
        torch.equal(v, now[k]) if isinstance(v, torch.Tensor) else v is now[k] or v == now[k]
        for k, v in values.items()
        if k in now
    )
    return type(thing) is kind and values.keys() == now.keys() and all(same)
