"""Draw scenes: closed-form signed distances, so edges are antialiased at any size and thousands a second are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from visalign.shapes.scenes import COLORS, SHAPES, Scene

PALETTE = torch.tensor(
    [
        [0.86, 0.10, 0.12],
        [1.00, 0.55, 0.05],
        [0.98, 0.90, 0.10],
        [0.10, 0.62, 0.22],
        [0.12, 0.30, 0.92],
        [0.58, 0.16, 0.72],
        [0.06, 0.06, 0.06],
    ]
)
"""RGB of `COLORS`, (7, 3) in [0, 1]."""

GROUND = (0.86, 0.96)
_CHUNK = 256


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.88


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.7


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    """Equilateral, a corner up; its centre is that of the circle through its corners."""
    return torch.maximum(y - 0.5, 0.8660254 * x.abs() - 0.5 * y - 0.5)


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points, one up: folded into half a point, it is one straight edge from the tip to the inner corner."""
    angle = torch.atan2(x, -y)
    angle = (torch.remainder(angle + math.pi / 5, 2 * math.pi / 5) - math.pi / 5).abs()
    radius, inner = torch.hypot(x, y), 0.45
    u, v = radius * angle.cos(), radius * angle.sin()
    eu, ev = inner * math.cos(math.pi / 5) - 1.0, inner * math.sin(math.pi / 5)
    return ((u - 1.0) * ev - v * eu) / math.hypot(eu, ev)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 0.93, y - 0.3), torch.maximum(x - 0.3, y - 0.93))


_DISTANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}


def coverage(shape: str, x: Tensor, y: Tensor, radius: Tensor, size: int) -> Tensor:
    """The share of each pixel that objects of one shape cover.

    Args:
        shape: one of `SHAPES`.
        x: centres as fractions of the image side, (N,).
        y: as `x`, downwards.
        radius: radii of the circle around each object, (N,), fractions of the image side.
        size: image side in pixels.

    Returns:
        (N, size, size) in [0, 1].
    """
    grid = (torch.arange(size) + 0.5) / size
    across = (grid[None, None, :] - x[:, None, None]) / radius[:, None, None]
    down = (grid[None, :, None] - y[:, None, None]) / radius[:, None, None]
    across, down = torch.broadcast_tensors(across, down)
    distance = _DISTANCE[shape](across, down) * radius[:, None, None] * size
    return (0.5 - distance).clamp(0, 1)


def render(scenes: Sequence[Scene], size: int, seed: int) -> Tensor:
    """Draw scenes on plain light grounds.

    Args:
        scenes: what to draw, B of them.
        size: image side in pixels.
        seed: draws each ground's brightness and small variations of the colours.

    Returns:
        (B, 3, size, size) float32 in [0, 1].

    Example:
        >>> from random import Random
        >>> from visalign.shapes.scenes import describe, place
        >>> rng = Random(0)
        >>> render([place(describe("counting", rng), rng)], size=64, seed=0).shape
        torch.Size([1, 3, 64, 64])
    """
    generator = torch.Generator().manual_seed(seed)
    chunks = [_draw(scenes[i : i + _CHUNK], size, generator) for i in range(0, len(scenes), _CHUNK)]
    return torch.cat(chunks) if chunks else torch.zeros(0, 3, size, size)


def _draw(scenes: Sequence[Scene], size: int, generator: torch.Generator) -> Tensor:
    low, high = GROUND
    ground = low + (high - low) * torch.rand(len(scenes), generator=generator)
    pixels = ground[:, None, None, None].expand(-1, 3, size, size).clone()
    flat = [(i, o) for i, scene in enumerate(scenes) for o in scene.objects]
    for shape in SHAPES:
        owned = [(i, o) for i, o in flat if o.shape == shape]
        if not owned:
            continue
        place = torch.tensor([(o.x, o.y, o.radius) for _, o in owned])
        alpha = coverage(shape, place[:, 0], place[:, 1], place[:, 2], size)[:, None]
        paint = PALETTE[[COLORS.index(o.color) for _, o in owned]]
        paint = (paint + 0.02 * torch.randn(paint.shape, generator=generator)).clamp(0, 1)
        # Objects of a scene do not overlap, so their differences to the ground add up.
        image = torch.tensor([i for i, _ in owned])
        pixels.index_add_(0, image, alpha * (paint - ground[image][:, None])[:, :, None, None])
    return pixels.clamp(0, 1)
