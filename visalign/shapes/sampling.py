"""Draw pictures from a pipeline, judge them, and lay them out on a sheet with their captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from visalign.shapes import prompts
from visalign.shapes.models import Pipeline
from visalign.shapes.scenes import CATEGORIES
from visalign.shapes.verifier import Verdict, verify

NULL_TOKENS = 1
"""`max_sequence_length` of the calls: pictures are as good as with the default of 256, and four times faster."""
_CAPTION_HEIGHT = 26
_ZOOM = 160
_BATCH = 150


@torch.no_grad()
def draw_pictures(pipeline: Pipeline, captions: Sequence[str], steps: int, seed: int) -> Tensor:
    """One picture a caption without guidance, (B, 3, S, S) in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    generator, images = torch.Generator().manual_seed(seed), []
    for start in range(0, len(captions), _BATCH):
        images.append(
            pipeline(
                list(captions[start : start + _BATCH]),
                num_inference_steps=steps,
                guidance_scale=1.0,
                max_sequence_length=NULL_TOKENS,
                generator=generator,
                output_type="pt",
            ).images
        )
    return torch.cat(images).float()


def evaluate(pipeline: Pipeline, steps: int = 8, repeats: int = 2, seed: int = 0) -> Verdict:
    """Judge `repeats` pictures of every held-out prompt."""
    rows = prompts("held_out") * repeats
    return verify(draw_pictures(pipeline, [row["prompt"] for row in rows], steps, seed), rows)


def write_sheet(pipeline: Pipeline, path: Path, steps: int = 8, columns: int = 8, seed: int = 0) -> None:
    """A row of held-out prompts for each category; under a picture its caption, green where the verifier agrees."""
    rng = Random(seed)
    rows = [r for c in CATEGORIES for r in rng.sample([p for p in prompts("held_out") if p["tag"] == c], columns)]
    pixels = draw_pictures(pipeline, [row["prompt"] for row in rows], steps, seed)
    compose_sheet(pixels, rows, verify(pixels, rows).strict.tolist(), columns).save(path)


def compose_sheet(
    pixels: Tensor, rows: Sequence[Mapping[str, Any]], strict: Sequence[float], columns: int
) -> Image.Image:
    """Pictures (B, 3, S, S) in rows of `columns`, captions below in green (right) or red (wrong)."""
    cell = _ZOOM + _CAPTION_HEIGHT
    sheet = Image.new("RGB", (columns * _ZOOM, -(-len(rows) // columns) * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, row, right) in enumerate(zip(pixels, rows, strict, strict=True)):
        x, y = i % columns * _ZOOM, i // columns * cell
        picture = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy())
        sheet.paste(picture.resize((_ZOOM - 2, _ZOOM - 2), Image.Resampling.NEAREST), (x + 1, y + 1))
        words = row["prompt"].split()
        text = " ".join(words[:5]) + ("\n" + " ".join(words[5:]) if len(words) > 5 else "")
        color = "darkgreen" if right else "firebrick"
        draw.multiline_text((x + 2, y + _ZOOM), text, fill=color, font_size=10, spacing=1)
    return sheet
