"""Samples of the base model, and how much of a picture no scene explains: the truth about faults that have no label."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from visalign.shapes import model_path
from visalign.shapes.judges.data import draw_description
from visalign.shapes.judges.recipes import SampleRecipe
from visalign.shapes.reading import Found, read_objects
from visalign.shapes.render import GROUND, PALETTE, coverage
from visalign.shapes.sampling import draw_pictures
from visalign.shapes.scenes import SHAPES

FAULTY = 0.012
"""Share of a picture that no scene explains from which on it counts as faulty; 49 pixels of 64 × 64."""
_RUINED = 0.12
_OFF = 0.12
_RADIUS = {
    "circle": (0.2814, 0.15),
    "square": (0.3546, 0.09),
    "triangle": (0.3082, 0.45),
    "star": (0.2687, 0.73),
    "cross": (0.2691, -0.03),
}
"""Radius of each shape as a share of what width and height add up to, and what the tips lose on top, in pixels."""


@dataclass(frozen=True)
class Samples:
    """Pictures of the base model.

    Attributes:
        pixels: (N, 3, S, S) float32 in [0, 1].
        rows: GenEval metadata of their prompts.
        unexplained: (N,) float32, of `unexplained`.
    """

    pixels: Tensor
    rows: tuple[dict[str, Any], ...]
    unexplained: Tensor

    @property
    def faulty(self) -> Tensor:
        """(N,) bool."""
        return self.unexplained > FAULTY

    @property
    def strength(self) -> Tensor:
        """How bad they are on the scale of `damage`, (N,) in [0, 1]."""
        return (self.unexplained / _RUINED).clamp(0, 1)


@torch.no_grad()
def unexplained(pixels: Tensor) -> Tensor:
    """The share of each picture that differs from the nearest picture that the renderer could draw.

    Objects are read, drawn again in pure colours on a plain ground, and compared; blobs that are no shape, ghosts,
    noise, casts and torn edges remain.

    Args:
        pixels: (B, 3, S, S) in [0, 1].

    Returns:
        (B,) in [0, 1]; 0 for a clean render.
    """
    again = _redrawn(pixels, read_objects(pixels))
    error = (pixels - again).abs().mean(dim=1, keepdim=True)
    # Averaged over 3 x 3, so that edges which are half a pixel off do not count.
    return (F.avg_pool2d(error, 3, 1, 1) > _OFF).float().mean(dim=(1, 2, 3))


def _redrawn(pixels: Tensor, found: Found) -> Tensor:
    side = pixels.shape[-1]
    alpha = torch.zeros(len(pixels), side, side)
    paint = torch.zeros_like(pixels)
    for shape, name in enumerate(SHAPES):
        rows = (found.shape == shape).nonzero()[:, 0]
        if len(rows):
            share_of, lost = _RADIUS[name]
            radius = share_of * found.extent[rows].sum(dim=1) + lost / side
            share = coverage(name, found.center[rows, 0], found.center[rows, 1], radius, side)
            alpha.index_add_(0, found.image[rows], share)
            color = PALETTE[found.color[rows]][:, :, None, None]
            paint.index_add_(0, found.image[rows], share[:, None] * color)
    alpha = alpha.clamp(0, 1)[:, None]
    bare = torch.where(alpha > 0, torch.nan, pixels)  # (B, 3, S, S)
    ground = bare.flatten(2).nanmedian(dim=2).values.mean(dim=1).nan_to_num(GROUND[0]).clamp(*GROUND)
    return paint.clamp(0, 1) + (1 - alpha) * ground[:, None, None, None]


def sample(recipe: SampleRecipe, rows: list[dict[str, Any]], seed: int) -> Samples:
    """Pictures of the base model for these prompts, in equal parts with each number of steps."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(model_path(recipe.model))
    parts = [rows[i :: len(recipe.steps)] for i in range(len(recipe.steps))]
    pairs = [(n, part) for n, part in zip(recipe.steps, parts, strict=True) if part]
    pixels = torch.cat([draw_pictures(pipeline, [r["prompt"] for r in part], n, seed + n) for n, part in pairs])
    pixels = (pixels * 255).round() / 255
    return Samples(pixels, tuple(row for _, part in pairs for row in part), unexplained(pixels))


def training_samples(recipe: SampleRecipe, seed: int, folder: Path) -> Samples:
    """Samples for captions that are not held out; drawn once, then read from the folder."""
    path = folder / "samples.safetensors"
    if not path.exists():
        rng = Random(f"{seed} samples")
        found = sample(recipe, [draw_description(rng).metadata() for _ in range(recipe.count)], seed)
        tensors = {"pixels": (found.pixels * 255).round().byte(), "unexplained": found.unexplained}
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"rows": json.dumps(found.rows)})
        partial.rename(path)
    with safe_open(path, "pt") as file:
        rows = tuple(json.loads(file.metadata()["rows"]))
        return Samples(file.get_tensor("pixels").float() / 255, rows, file.get_tensor("unexplained"))
