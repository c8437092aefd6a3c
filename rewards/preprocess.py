"""From pixels to what an encoder was trained on: one object for scores and for gradients.

Antialiased interpolation is within 8-bit rounding of pillow's (0.26 of 255 on average for bicubic); any other way of
resizing is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Triple = tuple[float, float, float]
Fit = Literal["crop", "crop_floor", "pad", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)


def resize(images: Tensor, height: int, width: int, interpolation: Interpolation = "bicubic") -> Tensor:
    """Images (B, 3, H, W) in [0, 1] at another size, antialiased, within [0, 1].

    Along the width first, then along the height, as pillow does: bicubic interpolation overshoots at edges, and what is
    cut off after the first does not come back in the second. Gradients pass as if nothing was cut off, so that a white
    wall does not lose its gradient to rounding.
    """
    for size in ((images.shape[-2], width), (height, width)):
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode=interpolation, antialias=True, align_corners=False)
            images = images - (images - images.clamp(0, 1)).detach()
    return images


def _shorter_side(images: Tensor, size: int, interpolation: Interpolation) -> Tensor:
    height, width = images.shape[-2:]
    short = min(height, width)
    return resize(images, size * height // short, size * width // short, interpolation)


def crop(images: Tensor, size: int, fill: Triple, interpolation: Interpolation = "bicubic") -> Tensor:
    """The shorter side becomes `size`, the middle square stays, as in torchvision; `fill` is not used."""
    scaled = _shorter_side(images, size, interpolation)
    top, left = (round((n - size) / 2) for n in scaled.shape[-2:])
    return scaled[..., top : top + size, left : left + size]


def crop_floor(images: Tensor, size: int, fill: Triple, interpolation: Interpolation = "bicubic") -> Tensor:
    """`crop` as in transformers, which rounds half a pixel down where torchvision rounds it to even."""
    scaled = _shorter_side(images, size, interpolation)
    top, left = ((n - size) // 2 for n in scaled.shape[-2:])
    return scaled[..., top : top + size, left : left + size]


def pad(images: Tensor, size: int, fill: Triple, interpolation: Interpolation = "bicubic") -> Tensor:
    """The longer side becomes `size`, the rest is filled to a square."""
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    scaled = resize(images, max(1, round(height * scale)), max(1, round(width * scale)), interpolation)
    top, left = ((size - n) // 2 for n in scaled.shape[-2:])
    canvas = torch.tensor(fill, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    edges = (left, size - scaled.shape[-1] - left, top, size - scaled.shape[-2] - top)
    inside = F.pad(torch.ones_like(scaled[:, :1]), edges)
    return F.pad(scaled, edges) + canvas * (1 - inside)


def squash(images: Tensor, size: int, fill: Triple, interpolation: Interpolation = "bicubic") -> Tensor:
    """Both sides become `size`, whatever the shape was; `fill` is not used."""
    return resize(images, size, size, interpolation)


FITS: dict[Fit, Callable[[Tensor, int, Triple, Interpolation], Tensor]] = {
    "crop": crop,
    "crop_floor": crop_floor,
    "pad": pad,
    "squash": squash,
}


@dataclass(frozen=True)
class Preprocess:
    """Resize to a square and normalise.

    Attributes:
        size: side in pixels.
        fit: `crop` (CLIP of OpenAI and open_clip), `crop_floor` (CLIP of transformers), `pad` (HPSv2, VQAScore) or
            `squash` (SigLIP).
        mean: subtracted from each channel.
        std: divides each channel.
        fill: colour around a padded image, in [0, 1].
        interpolation: `bicubic`, or `bilinear` (SigLIP 2).

    Example:
        >>> Preprocess(224)(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 3, 224, 224])
    """

    size: int
    fit: Fit = "crop"
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    fill: Triple = (0.0, 0.0, 0.0)
    interpolation: Interpolation = "bicubic"

    def square(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] → (B, 3, size, size) float32 in [0, 1]; that size stays as it is."""
        return FITS[self.fit](images.float(), self.size, self.fill, self.interpolation)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] → normalised (B, 3, size, size) float32; gradients pass."""
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (self.square(images) - mean) / std
