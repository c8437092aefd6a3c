"""Pixels as pillow images, for rewards that judge files."""

from __future__ import annotations

from PIL import Image
from torch import Tensor


def to_pil(images: Tensor) -> list[Image.Image]:
    """RGB images (B, 3, H, W) in [0, 1] as pillow images; values are rounded to 8 bits, not cut off.

    Example:
        >>> import torch
        >>> to_pil(torch.full((1, 3, 2, 4), 0.5))[0].getpixel((0, 0))
        (128, 128, 128)
    """
    pixels = (images.detach().float() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p) for p in pixels]
