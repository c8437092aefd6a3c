"""From pixels to what an encoder was trained on: one object for scores and for gradients.

Antialiased bicubic interpolation is within 8-bit rounding of pillow's (0.26 of 255 on average); any other way of
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
Fit = Literal["crop", "pad", "squash"]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] at another size, by antialiased bicubic interpolation, within [0, 1]."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def crop(images: Tensor, size: int, fill: Triple) -> Tensor:
    """The shorter side becomes `size`, the middle square stays; `fill` is not used."""
    height, width = images.shape[-2:]
    scale = size / min(height, width)
    scaled = resize(images, max(size, int(height * scale)), max(size, int(width * scale)))
    top, left = (round((n - size) / 2) for n in scaled.shape[-2:])
    return scaled[..., top : top + size, left : left + size]


def pad(images: Tensor, size: int, fill: Triple) -> Tensor:
    """The longer side becomes `size`, the rest is filled to a square."""
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    scaled = resize(images, round(height * scale), round(width * scale))
    top, left = ((size - n) // 2 for n in scaled.shape[-2:])
    canvas = torch.tensor(fill, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    edges = (left, size - scaled.shape[-1] - left, top, size - scaled.shape[-2] - top)
    inside = F.pad(torch.ones_like(scaled[:, :1]), edges)
    return F.pad(scaled, edges) + canvas * (1 - inside)


def squash(images: Tensor, size: int, fill: Triple) -> Tensor:
    """Both sides become `size`, whatever the shape was; `fill` is not used."""
    return resize(images, size, size)


FITS: dict[Fit, Callable[[Tensor, int, Triple], Tensor]] = {"crop": crop, "pad": pad, "squash": squash}


@dataclass(frozen=True)
class Preprocess:
    """Resize to a square and normalise.

    Attributes:
        size: side in pixels.
        fit: `crop` (CLIP), `pad` (HPSv2, VQAScore) or `squash` (SigLIP).
        mean: subtracted from each channel.
        std: divides each channel.
        fill: colour around a padded image, in [0, 1].

    Example:
        >>> Preprocess(224)(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 3, 224, 224])
    """

    size: int
    fit: Fit = "crop"
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    fill: Triple = (0.0, 0.0, 0.0)

    def square(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] → (B, 3, size, size) float32 in [0, 1]; that size stays as it is."""
        return FITS[self.fit](images.float(), self.size, self.fill)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] → normalised (B, 3, size, size) float32; gradients pass."""
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (self.square(images) - mean) / std
