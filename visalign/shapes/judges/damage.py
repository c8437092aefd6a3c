"""Damage to clean pictures, at any strength: what the judges of quality learn to see."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

LEAST = 0.15
"""The weakest damage that is drawn; less is hard to see."""

Damage = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Pictures (B, 3, S, S) in [0, 1], strengths (B,) in (0, 1] and a source of chance → pictures."""


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _uniform(count: int, low: float, high: float, draw: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=draw)


def blur(pixels: Tensor, strength: Tensor, draw: torch.Generator) -> Tensor:
    """A Gaussian of up to 4.5 % of the side."""
    batch, channels, side, _ = pixels.shape
    sigma = (0.01 + 0.035 * strength) * side
    reach = math.ceil(0.1 * side)
    grid = torch.arange(-reach, reach + 1)
    kernel = (-0.5 * (grid / sigma[:, None]) ** 2).exp()
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, 0)[:, None, None]
    rows = F.pad(pixels, (reach,) * 4, mode="replicate").flatten(0, 1)[None]
    rows = F.conv2d(rows, kernel, groups=batch * channels)
    return F.conv2d(rows, kernel.transpose(2, 3), groups=batch * channels).view(pixels.shape)


def noise(pixels: Tensor, strength: Tensor, draw: torch.Generator) -> Tensor:
    """Gaussian noise in every pixel, up to 0.3."""
    return pixels + _column(0.03 + 0.27 * strength) * torch.randn(pixels.shape, generator=draw)


def blocks(pixels: Tensor, strength: Tensor, draw: torch.Generator) -> Tensor:
    """Coarse squares shine through."""
    side = pixels.shape[-1]
    cell = side // 8
    coarse = F.interpolate(F.avg_pool2d(pixels, cell), size=(side, side))
    return torch.lerp(pixels, coarse, _column(0.25 + 0.75 * strength))


def jpeg(pixels: Tensor, strength: Tensor, draw: torch.Generator) -> Tensor:
    """Compressed by JPEG, down to a quality of 4."""
    return torch.stack([_compressed(p, round(30 - 26 * float(s))) for p, s in zip(pixels, strength, strict=True)])


def _compressed(pixels: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    to_pil_image((pixels.clamp(0, 1) * 255).round().byte()).save(buffer, "JPEG", quality=quality)
    return pil_to_tensor(Image.open(buffer)).float() / 255


def tint(pixels: Tensor, strength: Tensor, draw: torch.Generator) -> Tensor:
    """A cast of a random colour over everything."""
    cast = F.normalize(torch.randn(len(pixels), 3, generator=draw), dim=1)
    return pixels + (0.08 + 0.27 * strength)[:, None, None, None] * cast[:, :, None, None]


def holes(pixels: Tensor, strength: Tensor, draw: torch.Generator) -> Tensor:
    """Bites out of what is painted, in the colour of the ground."""
    side = pixels.shape[-1]
    ground = pixels[:, :, :1, :1]
    painted = (pixels - ground).abs().amax(dim=1).flatten(1) + 1e-6
    where = torch.multinomial(painted, 4, generator=draw)  # (B, 4)
    axis = torch.arange(side)
    down = axis[None, None, :, None] - (where // side)[:, :, None, None]
    across = axis[None, None, None, :] - (where % side)[:, :, None, None]
    radius = (0.02 + 0.06 * strength[:, None]) * side * _uniform(4, 0.7, 1.3, draw)
    bitten = (torch.hypot(down.float(), across.float()) < radius[:, :, None, None]).any(dim=1, keepdim=True)
    return torch.where(bitten, ground, pixels)


def warp(pixels: Tensor, strength: Tensor, draw: torch.Generator) -> Tensor:
    """Bent along waves."""
    count, side = len(pixels), pixels.shape[-1]
    axis = torch.arange(side) / side
    shifts = []
    for over in (axis[None, :, None], axis[None, None, :]):
        cycles, phase = (_uniform(count, a, b, draw)[:, None, None] for a, b in ((2.0, 5.0), (0.0, 2 * math.pi)))
        wave = (2 * math.pi * cycles * over + phase).sin() * (0.01 + 0.05 * strength)[:, None, None]
        shifts.append(wave.expand(count, side, side))
    return _moved(pixels, shifts[0], shifts[1])


def tear(pixels: Tensor, strength: Tensor, draw: torch.Generator) -> Tensor:
    """Torn through the middle, and the lower part shifted aside."""
    count, side = len(pixels), pixels.shape[-1]
    cut = _uniform(count, 0.25, 0.65, draw)[:, None, None]
    sign = torch.randint(2, (count,), generator=draw) * 2 - 1
    shift = (sign * (0.03 + 0.2 * strength))[:, None, None]
    rows = (torch.arange(side) / side)[None, :, None].expand(count, side, side)
    across = torch.where((rows > cut) & (rows < cut + 0.3), shift, 0.0)
    return _moved(pixels, across, torch.zeros_like(across))


def ghost(pixels: Tensor, strength: Tensor, draw: torch.Generator) -> Tensor:
    """Seen twice: a pale copy beside."""
    side = pixels.shape[-1]
    angle, reach = _uniform(len(pixels), 0, 2 * math.pi, draw), _uniform(len(pixels), 0.06, 0.16, draw)
    across, down = ((reach * f(angle))[:, None, None].expand(-1, side, side) for f in (torch.cos, torch.sin))
    return torch.lerp(pixels, _moved(pixels, across, down), _column(0.12 + 0.33 * strength))


def _moved(pixels: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Every pixel fetched from elsewhere, (B, S, S) fractions of the side away; the border goes on outside."""
    side = pixels.shape[-1]
    axis = (torch.arange(side) + 0.5) / side
    grid = torch.stack([axis[None, None, :] + across, axis[None, :, None] + down], dim=-1) * 2 - 1
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


KINDS: dict[str, Damage] = {
    "blur": blur,
    "noise": noise,
    "blocks": blocks,
    "jpeg": jpeg,
    "tint": tint,
    "holes": holes,
    "warp": warp,
    "tear": tear,
    "ghost": ghost,
}


def damage(pixels: Tensor, kinds: Tensor, strength: Tensor, seed: int) -> Tensor:
    """Damage some pictures.

    Args:
        pixels: (B, 3, S, S) in [0, 1].
        kinds: index into `KINDS` or -1, (B,) int64.
        strength: (B,) in [0, 1].
        seed: of all chance in it.

    Returns:
        (B, 3, S, S) in [0, 1]; rows of kind -1 as they were.

    Example:
        >>> clean = torch.full((2, 3, 16, 16), 0.5)
        >>> found = damage(clean, torch.tensor([-1, 1]), torch.tensor([0.0, 1.0]), seed=0)
        >>> torch.equal(found[0], clean[0]), torch.equal(found[1], clean[1])
        (True, False)
    """
    result, draw = pixels.clone(), torch.Generator().manual_seed(seed)
    for number, apply in enumerate(KINDS.values()):
        rows = (kinds == number).nonzero()[:, 0]
        if len(rows):
            result[rows] = apply(pixels[rows], strength[rows], draw).clamp(0, 1)
    return result


def draw_damage(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Kinds (B,) and strengths (B,) of damage to a share of the rows; the others have kind -1 and strength 0."""
    draw = torch.Generator().manual_seed(seed)
    hit = torch.rand(count, generator=draw) < share
    kinds = torch.randint(len(KINDS), (count,), generator=draw)
    strength = _uniform(count, LEAST, 1.0, draw)
    return torch.where(hit, kinds, -1), torch.where(hit, strength, 0.0)


def vary(pixels: Tensor, seed: int) -> Tensor:
    """Differences that are no damage, as a decoder leaves them: slightly soft edges, and faint noise."""
    draw = torch.Generator().manual_seed(seed)
    soft = F.avg_pool2d(F.pad(pixels, (1,) * 4, mode="replicate"), 3, 1)
    mixed = torch.lerp(pixels, soft, _column(_uniform(len(pixels), 0.0, 0.4, draw)))
    grain = _column(_uniform(len(pixels), 0.0, 0.012, draw)) * torch.randn(pixels.shape, generator=draw)
    return (mixed + grain).clamp(0, 1)
