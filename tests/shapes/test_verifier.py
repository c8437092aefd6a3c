from __future__ import annotations

import time
from random import Random

import pytest
import torch
from torch.nn import functional as F

from visalign import shapes
from visalign.shapes.reading import read_objects
from visalign.shapes.render import render
from visalign.shapes.scenes import CATEGORIES, SHAPES, Object, Scene, describe, place
from visalign.shapes.verifier import verify


def world(count: int, seed: int = 0) -> tuple[list[Scene], list[dict]]:
    rng = Random(seed)
    descriptions = [describe(CATEGORIES[i % 6], rng) for i in range(count)]
    return [place(d, rng) for d in descriptions], [d.metadata() for d in descriptions]


def picture(*objects: tuple[str, str, float, float]) -> torch.Tensor:
    scene = Scene(tuple(Object(shape=s, color=c, x=x, y=y, radius=0.15) for s, c, x, y in objects))
    return render([scene], 64, seed=0)


def score(pixels: torch.Tensor, include: list[dict], exclude: list[dict] | None = None) -> tuple[float, float]:
    verdict = verify(pixels, [{"tag": "counting", "include": include, "exclude": exclude or []}])
    return float(verdict.strict), float(verdict.graded)


@pytest.mark.parametrize("size", [64, 40])
def test_rendered_truth_is_read_right(size: int) -> None:
    scenes, rows = world(1200)
    verdict = verify(render(scenes, size, seed=1), rows)
    assert verdict.by_category()["overall"] >= 0.995
    wanted = [sorted((o.shape, o.color) for o in scene.objects) for scene in scenes]
    seen = [sorted((o.shape or "?", o.color) for o in objects) for objects in verdict.objects]
    assert sum(w == s for w, s in zip(wanted, seen)) >= 0.995 * len(scenes)
    assert torch.equal(verdict.strict == 1, verdict.graded == 1)


@pytest.mark.parametrize("size", [64, 40])
def test_objects_are_found_where_they_were_put(size: int) -> None:
    scenes, _ = world(120)
    found = read_objects(render(scenes, size, seed=1))
    for i, scene in enumerate(scenes):
        centers = found.center[found.image == i]
        for o in scene.objects:
            nearest = (centers - torch.tensor([o.x, o.y])).norm(dim=1).min()
            assert float(nearest) < 0.5 / size


@pytest.mark.parametrize("size", [64, 40])
def test_wrong_captions_are_refused(size: int) -> None:
    scenes = world(1200, seed=2)[0]
    others = world(1200, seed=3)[1]
    pixels = render(scenes, size, seed=2)
    accepted = verify(pixels, others).strict == 1
    true = torch.tensor([holds(scene, row) for scene, row in zip(scenes, others)])
    assert int((accepted & ~true).sum()) <= 2
    assert int((true & ~accepted).sum()) <= 2


def holds(scene: Scene, row: dict) -> bool:
    """Whether a caption happens to be true of a scene that was drawn for another one; read off the scene itself."""
    groups = [[o for o in scene.objects if o.shape == c["class"]] for c in row["include"]]
    if sum(map(len, groups)) != len(scene.objects):
        return False
    for clause, group in zip(row["include"], groups):
        if len(group) != clause["count"] or any(o.color != clause.get("color", o.color) for o in group):
            return False
        if "position" in clause:
            one, other = group[0], groups[clause["position"][1]][0]
            dx, dy = one.x - other.x, one.y - other.y
            side = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[clause["position"][0]]
            if side <= 0.5 * (dx**2 + dy**2) ** 0.5:
                return False
    return True


@pytest.mark.parametrize("size", [64, 40])
def test_blur_and_noise_do_not_mislead(size: int) -> None:
    scenes, rows = world(600, seed=4)
    pixels = render(scenes, size, seed=4)
    blurred = 0.5 * pixels + 0.5 * F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    noise = 0.05 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    assert verify((blurred + noise).clamp(0, 1), rows).by_category()["overall"] >= 0.98


def test_partial_credit_counts_what_is_right() -> None:
    two = picture(("star", "red", 0.25, 0.25), ("star", "red", 0.75, 0.75))
    assert score(two, [{"class": "star", "count": 2}]) == (1.0, 1.0)
    assert score(two, [{"class": "star", "count": 4}]) == (0.0, pytest.approx((0.5 + 1) / 2))
    assert score(two, [{"class": "star", "count": 2, "color": "blue"}]) == (0.0, pytest.approx((1 + 0 + 1) / 3))
    assert score(two, [{"class": "circle", "count": 1}]) == (0.0, pytest.approx((0 + 1 / 3) / 2))
    assert score(two, [{"class": "star", "count": 1}])[0] == 0.0


def test_an_excluded_count_is_refused() -> None:
    two = picture(("star", "red", 0.25, 0.25), ("star", "red", 0.75, 0.75))
    assert score(two, [{"class": "star", "count": 2}], [{"class": "star", "count": 2}])[0] == 0.0
    assert score(two, [{"class": "star", "count": 2}], [{"class": "star", "count": 3}])[0] == 1.0


@pytest.mark.parametrize(("relation", "right"), [("left of", 1), ("right of", 0), ("above", 0), ("below", 0)])
def test_relations_are_seen_from_the_reference(relation: str, right: int) -> None:
    pixels = picture(("star", "red", 0.25, 0.5), ("circle", "blue", 0.75, 0.5))
    include = [{"class": "circle", "count": 1}, {"class": "star", "count": 1, "position": [relation, 0]}]
    strict, graded = score(pixels, include)
    assert strict == right
    # Right angles earn more than the opposite side, and less than the side that was asked for.
    credit = {"left of": 1.0, "right of": 0.0}.get(relation, 1 / 3)
    assert graded == pytest.approx((3 + credit) / 4, abs=0.02)


def test_a_diagonal_counts_for_both_axes_as_in_geneval() -> None:
    pixels = picture(("star", "red", 0.25, 0.25), ("circle", "blue", 0.75, 0.75))
    for relation in ("left of", "above"):
        include = [{"class": "circle", "count": 1}, {"class": "star", "count": 1, "position": [relation, 0]}]
        assert score(pixels, include)[0] == 1.0


def test_an_empty_picture_and_pure_noise_hold_nothing() -> None:
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for pixels in (torch.full((1, 3, 64, 64), 0.9), torch.zeros(1, 3, 64, 64), noise):
        for shape in SHAPES:
            assert score(pixels, [{"class": shape, "count": 1}])[0] == 0.0


def test_blobs_are_no_shape() -> None:
    """Two circles that touch are neither one circle nor two."""
    pixels = picture(("circle", "red", 0.4, 0.5), ("circle", "red", 0.6, 0.5))
    (objects,) = verify(
        pixels, [{"tag": "counting", "include": [{"class": "circle", "count": 2}], "exclude": []}]
    ).objects
    assert [o.shape for o in objects] == [None]


def test_overall_is_the_mean_of_category_means() -> None:
    scenes, rows = world(12)
    rows[0] = {**rows[0], "include": [{"class": "star", "count": 4}]}
    means = verify(render(scenes, 64, seed=0), rows).by_category()
    assert means["single_object"] == 0.5
    assert means["overall"] == pytest.approx(5.5 / 6)


def test_wrong_input_is_one_readable_message() -> None:
    with pytest.raises(ValueError, match="2 pictures came with 1 rows"):
        verify(torch.zeros(2, 3, 64, 64), [{}])
    with pytest.raises(ValueError, match=r"pictures must be \(B, 3, S, S\), but \(1, 3, 64, 32\) came"):
        read_objects(torch.zeros(1, 3, 64, 32))
    with pytest.raises(ValueError, match="'dog' is not in the shapes world; metadata may name circle, square"):
        score(torch.zeros(1, 3, 64, 64), [{"class": "dog", "count": 1}])


def test_a_training_batch_is_judged_in_a_fraction_of_a_second() -> None:
    scenes, rows = world(128)
    pixels = render(scenes, 64, seed=0)
    verify(pixels, rows)
    start = time.perf_counter()
    verify(pixels, rows)
    assert time.perf_counter() - start < 2.0  # 0.2 s on two idle cores; the rest is for busy machines


def test_held_out_prompts_can_all_be_fulfilled() -> None:
    rows = shapes.prompts("held_out")
    rng = Random(0)
    by_prompt = {}
    while len(by_prompt) < len(rows):
        for category in CATEGORIES:
            description = describe(category, rng)
            if description.caption in {row["prompt"] for row in rows}:
                by_prompt[description.caption] = description
    scenes = [place(by_prompt[row["prompt"]], rng) for row in rows]
    assert verify(render(scenes, 64, seed=0), rows).by_category()["overall"] == 1.0
