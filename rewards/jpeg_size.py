"""How small, or how large, an image is as a JPEG file: the reward of DDPO that needs no weights and no prompt."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Literal

import torch
from PIL import Image

from visalign.rewards.base import Reward, RewardSpec
from visalign.rewards.pil import to_pil
from visalign.types import InputError, Media, Prompts, Scores

SIGNS = {"compress": -1, "incompress": 1}
UNITS = ("kilobytes", "bits_per_pixel")


def jpeg_bytes(image: Image.Image, quality: int = 95) -> int:
    """The size of an image as a JPEG file, in bytes.

    Example:
        >>> jpeg_bytes(Image.new("RGB", (64, 64))) < 1000
        True
    """
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.tell()


class JpegSize(Reward):
    """JPEG compressibility (small files are good) or incompressibility (large ones are), of the first frame.

    Args:
        direction: `compress` rewards small files (values ≤ 0), `incompress` large ones (values ≥ 0).
        quality: of the encoder, 1 to 95; DDPO takes 95.
        unit: `kilobytes` (1000 bytes, as in DDPO), or `bits_per_pixel`, which does not grow with the resolution.

    Raises:
        InputError: the quality is not in 1 … 95, or a word is not one of those.

    Example:
        >>> noise = torch.rand(1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> plain = JpegSize().score(Media(torch.zeros(1, 1, 3, 64, 64)), Prompts(("a wall",))).values
        >>> bool(plain > JpegSize().score(Media(noise), Prompts(("a wall",))).values)
        True
    """

    spec = RewardSpec(name="jpeg_size", paper="Training Diffusion Models with Reinforcement Learning, arXiv 2305.13301")

    def __init__(
        self,
        direction: Literal["compress", "incompress"] = "compress",
        quality: int = 95,
        unit: Literal["kilobytes", "bits_per_pixel"] = "kilobytes",
    ) -> None:
        if not 1 <= quality <= 95:
            raise InputError(
                f"jpeg_size takes a quality from 1 to 95, but {quality} came; write for example quality: 95"
            )
        if direction not in SIGNS or unit not in UNITS:
            allowed = f"direction: {' | '.join(SIGNS)} and unit: {' | '.join(UNITS)}"
            raise InputError(f"jpeg_size takes {allowed}, but {direction!r} and {unit!r} came")
        self.sign = SIGNS[direction]
        self.unit = unit
        self.quality = quality
        self.spec = replace(self.spec, range=(None, 0.0) if self.sign < 0 else (0.0, None))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Sizes with their sign, (B,) float32."""
        height, width = media.pixels.shape[-2:]
        factor = self.sign * (1 / 1000 if self.unit == "kilobytes" else 8 / (height * width))
        return Scores(torch.tensor([factor * jpeg_bytes(image, self.quality) for image in to_pil(media.images)]))
