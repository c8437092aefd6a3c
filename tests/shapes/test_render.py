from __future__ import annotations

import math
from random import Random

import pytest
import torch

from visalign.shapes.render import GROUND, PALETTE, coverage, render
from visalign.shapes.scenes import CATEGORIES, COLORS, Object, Scene, describe, place

STAR_INNER = 0.45
AREAS = {
    "circle": math.pi * 0.88**2,
    "square": 1.4**2,
    "triangle": 3 * math.sqrt(3) / 4,
    "star": 5 * STAR_INNER * math.sin(math.pi / 5),
    "cross": 4 * 0.93 * 0.6 - 0.6**2,
}


@pytest.mark.parametrize("shape", AREAS)
def test_areas_are_those_of_geometry(shape: str) -> None:
    radius = 0.3
    alpha = coverage(shape, torch.tensor([0.5]), torch.tensor([0.5]), torch.tensor([radius]), 256)
    assert float(alpha.mean()) == pytest.approx(AREAS[shape] * radius**2, rel=0.01)


@pytest.mark.parametrize("shape", AREAS)
def test_antialiasing_keeps_the_area_at_any_offset(shape: str) -> None:
    places = 0.5 + torch.rand(50, generator=torch.Generator().manual_seed(0)) / 40
    alpha = coverage(shape, places, places.flip(0), torch.full((50,), 0.15), 40)
    assert alpha.mean(dim=(1, 2)) == pytest.approx(torch.full((50,), AREAS[shape] * 0.15**2), rel=0.05)


def test_triangles_and_stars_point_up() -> None:
    for shape in ("triangle", "star"):
        alpha = coverage(shape, torch.tensor([0.5]), torch.tensor([0.5]), torch.tensor([0.4]), 101)[0]
        assert int((alpha > 0.5).nonzero()[0, 1]) == 50


def test_pictures_are_seeded_light_grounds_with_coloured_objects() -> None:
    scene = Scene((Object(shape="square", color="blue", x=0.25, y=0.75, radius=0.2),))
    one, same, other = (render([scene], 64, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    corner, inside = one[0, :, 0, 63], one[0, :, 48, 16]
    assert corner.unique().numel() == 1
    assert GROUND[0] <= float(corner[0]) <= GROUND[1]
    assert torch.allclose(inside, PALETTE[COLORS.index("blue")], atol=0.1)


def test_every_size_and_number_of_scenes() -> None:
    rng = Random(0)
    scenes = [place(describe(CATEGORIES[i % 6], rng), rng) for i in range(300)]
    for size in (24, 40, 64):
        pixels = render(scenes, size, seed=0)
        assert pixels.shape == (300, 3, size, size)
        assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    assert render([], 32, seed=0).shape == (0, 3, 32, 32)
