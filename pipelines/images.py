"""Conditioning images as the argument `image` of a pipeline: a batch, PIL images, or one for all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from visalign.types import InputError


def as_tensor(images: Sequence[Tensor]) -> Tensor:
    """A batch (B, C, H, W) from B images (C, H, W) in [0, 1].

    Raises:
        InputError: if they differ in size.
    """
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise InputError(
            f"the conditioning images of a batch have sizes {sorted(sizes)}; bring them to one, or make batches of one"
        )
    return torch.stack(list(images))


def as_pictures(images: Sequence[Tensor]) -> list[Any]:
    """A PIL image a row, for pipelines that show them to a language model too."""
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(as_tensor(images)))


def as_one_picture(images: Sequence[Tensor]) -> Any:
    """The one PIL image of all rows, for pipelines that condition a whole batch on it.

    Raises:
        InputError: if the rows have different images.
    """
    if any(not torch.equal(image, images[0]) for image in images):
        raise InputError(
            "this pipeline conditions all rows of a batch on one image, but different ones came; make batches whose "
            "rows share their image (a group of one prompt), or batches of one"
        )
    return as_pictures(images[:1])[0]
