"""Every tiny pipeline is small, finite and deterministic, and its rows and seeds differ."""

from __future__ import annotations

import inspect

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from tests.tiny import CASES, TinyCase, build
from tests.tiny_parts import networks

TEXTS = ["a red circle left of the blue star", "a photo of three green dogs"]


def as_image(case: TinyCase):
    """The conditioning images as the pipeline takes them."""
    if case.image_form == "tensor":
        return torch.stack(case.images)
    pictures = [to_pil_image(picture) for picture in case.images]
    return pictures if case.image_form == "pil" else pictures[0]


def run(case: TinyCase, seeds=(0, 1), **changed) -> torch.Tensor:
    """The pixels of one call, a row for each seed."""
    call = {**case.call, **(case.tensors or {"prompt": TEXTS})}
    if case.images:
        call["image"] = as_image(case)
    if "guidance_scale" in inspect.signature(case.pipe.__call__).parameters:
        call["guidance_scale"] = case.guidance_scale
    call |= {"generator": [torch.Generator().manual_seed(s) for s in seeds], "num_inference_steps": case.num_steps}
    return case.pipe(**(call | changed), output_type="pt", return_dict=False)[0]


@pytest.mark.parametrize("name", CASES)
def test_tiny_case_is_small_finite_and_deterministic(name):
    case = build(name)
    assert 16_000 <= sum(p.numel() for m in networks(case.pipe).values() for p in m.parameters()) <= 400_000
    pixels = run(case)
    assert len(pixels) == 2
    assert pixels.isfinite().all()
    assert (pixels[0] - pixels[1]).abs().mean() > 0.01
    assert (pixels - run(case, seeds=(2, 3))).abs().mean() > 0.01
    assert torch.equal(pixels, run(build(name)))
