from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from visalign.figures import COLOURS, HEIGHT, LEGEND, WIDTH, curves


def rows_of(image: Image.Image, colour: tuple[int, int, int], left: int) -> list[int]:
    """Rows in which about that colour stands right of a column; letters have soft edges."""
    near = torch.tensor(np.array(image), dtype=torch.int).sub(torch.tensor(colour)).abs().amax(2) < 60
    return near[:, left:].any(1).nonzero()[:, 0].tolist()


def test_names_stand_beside_the_plot_with_the_highest_end_first(tmp_path):
    path = tmp_path / "curves.png"
    curves({"falls": [(0.0, 0.5), (2.0, 0.1)], "rises": [(0.0, 0.5), (1.0, 0.9)]}, path)
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    assert image.size == (WIDTH + LEGEND, HEIGHT)
    first, second = (rows_of(image, colour, WIDTH) for colour in COLOURS[:2])
    assert first
    assert max(first) < min(second)
    rises, falls = (rows_of(image.crop((0, 0, WIDTH, HEIGHT)), colour, 0) for colour in COLOURS[:2])
    assert min(rises) < max(rises) <= min(falls) + 2 < max(falls)  # both begin in the middle
