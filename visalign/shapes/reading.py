"""Read pictures back into objects: colour segmentation, connected components, shapes by comparison with the renderer.

Everything runs on the whole batch at once; a picture costs well under a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from visalign.shapes.render import PALETTE, coverage
from visalign.shapes.scenes import SHAPES

FOREGROUND = 0.5
"""Share of a pixel that must be covered to count as part of an object."""
SMALLEST = 0.006
"""Area below which a component is dirt, as a fraction of the image."""
LEAST_LIKENESS = 0.86
"""Cosine below which a silhouette is no shape at all."""
FAINTEST = 0.3
"""Largest channel difference to the ground below which a pixel is ground, whatever colour it leans to."""
_PATCH = 14
_REACH = 2.4


@dataclass(frozen=True)
class Found:
    """All objects of a batch in one list of M rows.

    Attributes:
        image: which picture, (M,) int64, ascending.
        shape: index into `SHAPES`, (M,) int64; -1 for something that is no shape.
        color: index into `COLORS`, (M,) int64.
        center: x and y as fractions of the side, (M, 2) float32, y downwards.
        extent: width and height as fractions of the side, (M, 2) float32.
        likeness: cosine to the nearest silhouette, (M,) float32.
    """

    image: Tensor
    shape: Tensor
    color: Tensor
    center: Tensor
    extent: Tensor
    likeness: Tensor


def read_objects(pixels: Tensor) -> Found:
    """Find the objects in pictures.

    Args:
        pixels: (B, 3, H, W) in [0, 1], square.

    Raises:
        ValueError: the pictures are not (B, 3, S, S).
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3]:
        raise ValueError(f"pictures must be (B, 3, S, S), but {tuple(pixels.shape)} came; use Media.images of a batch")
    pixels = pixels.detach().float().cpu()
    ground = pixels.flatten(2).median(dim=2).values
    alpha = _coverage(pixels, ground)
    index, image, number = _enumerate(*_components(alpha > FOREGROUND), pixels.shape[-1])
    return _measure(pixels, alpha, index, image, number)


def _coverage(pixels: Tensor, ground: Tensor) -> Tensor:
    """How much of each pixel is painted, (B, H, W): its step away from the ground, in units of the nearest colour's."""
    step = pixels - ground[:, :, None, None]
    whole = PALETTE[None] - ground[:, None, :]  # (B, 7, 3)
    unit = F.normalize(whole, dim=2)
    along = torch.einsum("bchw,bkc->bkhw", step, unit)
    share, best = along.max(dim=1)
    length = whole.norm(dim=2)  # (B, 7)
    alpha = share / length.gather(1, best.flatten(1)).view_as(share)
    return torch.where(step.abs().amax(dim=1) < FAINTEST, 0.0, alpha).clamp(0, 1)


def _components(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Connected regions of (B, H, W): flat indices of the painted pixels and the region of each; corners are apart.

    Horizontal runs are joined to those above them, each taking the larger number until nothing changes.
    """
    starts = mask.clone()
    starts[:, :, 1:] &= ~mask[:, :, :-1]
    runs = (starts.flatten().cumsum(0) - 1).view(mask.shape)
    touching = mask[:, 1:] & mask[:, :-1]
    upper, lower = runs[:, :-1][touching], runs[:, 1:][touching]
    labels = torch.arange(int(starts.sum()))
    while True:
        larger = torch.maximum(labels[upper], labels[lower])
        joined = labels.scatter_reduce(0, upper, larger, "amax").scatter_reduce(0, lower, larger, "amax")
        joined = joined[joined]
        if torch.equal(joined, labels):
            break
        labels = joined
    index = mask.flatten().nonzero()[:, 0]
    return index, labels[runs.flatten()[index]]


def _enumerate(index: Tensor, labels: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of objects: flat index, image and number of the object, images in order; dirt is dropped."""
    _, owner, area = labels.unique(return_inverse=True, return_counts=True)
    large = area >= SMALLEST * side * side
    number = (large.cumsum(0) - 1).masked_fill(~large, -1)[owner]
    keep = number >= 0
    return index[keep], index[keep] // (side * side), number[keep]


def _measure(pixels: Tensor, alpha: Tensor, index: Tensor, image: Tensor, number: Tensor) -> Found:
    """Silhouette, place and colour of each object from the flat indices of its pixels."""
    side = pixels.shape[-1]
    count = int(number.max()) + 1 if len(number) else 0
    owner = torch.zeros(count, dtype=torch.long).scatter_(0, number, image)
    hard = torch.zeros(count, side * side)
    hard[number, index % (side * side)] = 1.0
    hard = hard.view(count, 1, side, side)
    soft = (F.max_pool2d(hard, 3, 1, 1)[:, 0] if count else hard[:, 0]) * alpha[owner]
    patches, center = _silhouettes(soft)
    likeness, shape = _compare(patches, side)
    inside = soft.square().square() * hard[:, 0]
    paint = torch.einsum("mhw,mchw->mc", inside, pixels[owner]) / inside.sum(dim=(1, 2))[:, None]
    extent = torch.stack([hard.amax(dim=2).sum(dim=(1, 2)), hard.amax(dim=3).sum(dim=(1, 2))], dim=1) / side
    return Found(
        image=owner,
        shape=torch.where(likeness < LEAST_LIKENESS, -1, shape),
        color=torch.cdist(paint, PALETTE).argmin(dim=1),
        center=center,
        extent=extent,
        likeness=likeness,
    )


def _silhouettes(soft: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage maps (M, H, W) → centred patches of one scale, (M, P²) with zero mean and unit norm; centres (M, 2)."""
    side = soft.shape[-1]
    axis = (torch.arange(side) + 0.5) / side
    mass = soft.sum(dim=(1, 2)).clamp_min(1e-6)
    x, y = soft.sum(dim=1) @ axis / mass, soft.sum(dim=2) @ axis / mass
    second = soft.sum(dim=1) @ axis**2 / mass + soft.sum(dim=2) @ axis**2 / mass - x**2 - y**2
    reach = _REACH * (second.clamp_min(1e-6) / 2).sqrt()
    steps = (torch.arange(_PATCH) + 0.5) / _PATCH * 2 - 1
    across = (x[:, None] + reach[:, None] * steps) * 2 - 1
    down = (y[:, None] + reach[:, None] * steps) * 2 - 1
    grid = torch.stack([across[:, None, :].expand(-1, _PATCH, -1), down[:, :, None].expand(-1, -1, _PATCH)], dim=-1)
    patches = F.grid_sample(soft[:, None], grid, align_corners=False).flatten(1)
    return F.normalize(patches - patches.mean(dim=1, keepdim=True), dim=1), torch.stack([x, y], dim=1)


def _compare(patches: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Cosine to the nearest silhouette of the renderer, and the shape it belongs to, (M,) each."""
    likeness, best = (patches @ _templates(side).T).max(dim=1)
    return likeness, best % len(SHAPES)


@lru_cache(maxsize=8)
def _templates(side: int) -> Tensor:
    """Silhouettes at four sizes, each averaged over where it falls between pixels: (4 * 5, P²), shapes innermost."""
    shifts = torch.cartesian_prod(torch.arange(4), torch.arange(4)).float() / 4 / side + 0.5
    rows = []
    for radius in (0.13, 0.155, 0.18, 0.22):
        for shape in SHAPES:
            soft = coverage(shape, shifts[:, 0], shifts[:, 1], torch.full((len(shifts),), radius), side)
            rows.append(F.normalize(_silhouettes(soft)[0].mean(dim=0), dim=0))
    return torch.stack(rows)
