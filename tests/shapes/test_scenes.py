from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from visalign import shapes
from visalign.shapes.promptsets import draw_prompts, to_jsonl
from visalign.shapes.scenes import (
    CATEGORIES,
    GAP,
    MAX_WORDS,
    Clause,
    Corruption,
    Description,
    Object,
    Scene,
    corrupt,
    describe,
    place,
)

DATA = Path(shapes.__file__).parent / "data"


@pytest.mark.parametrize(
    ("description", "caption"),
    [
        (Description(tag="counting", clauses=(Clause(shape="circle", count=3, color="red"),)), "three red circles"),
        (Description(tag="counting", clauses=(Clause(shape="cross", count=2),)), "two crosses"),
        (Description(tag="colors", clauses=(Clause(shape="star", color="orange"),)), "an orange star"),
        (
            Description(
                tag="position",
                clauses=(Clause(shape="star", color="blue", relation="left of"), Clause(shape="square", color="green")),
            ),
            "a blue star left of a green square",
        ),
        (
            Description(tag="two_object", clauses=(Clause(shape="star"), Clause(shape="cross")), join="with"),
            "a star with a cross",
        ),
        (
            Description(tag="single_object", clauses=(Clause(shape="star"),), article="one", frame="a picture of {}"),
            "a picture of one star",
        ),
    ],
)
def test_captions_read_as_people_write(description: Description, caption: str) -> None:
    assert description.caption == caption


def test_a_relation_is_written_as_geneval_writes_it() -> None:
    clauses = (Clause(shape="star", color="blue", relation="above"), Clause(shape="square"))
    row = Description(tag="position", clauses=clauses).metadata()
    assert row == {
        "tag": "position",
        "include": [
            {"class": "square", "count": 1},
            {"class": "star", "count": 1, "color": "blue", "position": ["above", 0]},
        ],
        "exclude": [],
        "prompt": "a blue star above a square",
    }


def test_counting_excludes_one_more_as_geneval_does() -> None:
    row = Description(tag="counting", clauses=(Clause(shape="star", count=3),)).metadata()
    assert row["exclude"] == [{"class": "star", "count": 4}]


def test_an_unknown_category_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown category 'colours'; write one of single_object, two_object"):
        describe("colours", Random(0))


@pytest.mark.parametrize("category", CATEGORIES)
def test_scenes_show_what_is_said_and_nothing_else(category: str) -> None:
    rng = Random(category)
    for _ in range(200):
        description = describe(category, rng)
        scene = place(description, rng)
        assert len(description.caption.split()) <= MAX_WORDS
        assert Counter(o.shape for o in scene.objects) == {c.shape: c.count for c in description.clauses}
        for clause in description.clauses:
            colors = {o.color for o in scene.objects if o.shape == clause.shape}
            assert len(colors) == 1
            assert clause.color in (None, *colors)
        if description.clauses[0].relation:
            assert_stands(scene.objects[0], scene.objects[1], description.clauses[0].relation)
        assert_apart(scene)


def assert_stands(one: Object, other: Object, relation: str) -> None:
    dx, dy = one.x - other.x, one.y - other.y
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    assert along >= math.cos(math.radians(22)) * math.hypot(dx, dy) - 1e-9


def assert_apart(scene: Scene) -> None:
    for i, one in enumerate(scene.objects):
        assert one.radius < one.x < 1 - one.radius
        assert one.radius < one.y < 1 - one.radius
        for other in scene.objects[:i]:
            assert math.hypot(one.x - other.x, one.y - other.y) >= one.radius + other.radius + GAP


def test_the_same_seed_draws_the_same_world() -> None:
    worlds = [[place(describe(c, rng), rng) for c in CATEGORIES] for rng in (Random(3), Random(3))]
    assert worlds[0] == worlds[1]


def test_corruption_happens_as_often_as_it_says() -> None:
    rng, rates = Random(0), Corruption(count=0.6, relation=0.6, swap=0.4, presence=0.3)
    wrong: Counter[str] = Counter()
    for i in range(6000):
        description = describe(CATEGORIES[i % 6], rng)
        wrong[description.tag] += corrupt(description, rng, rates).clauses != description.clauses
    shares = {tag: wrong[tag] / 1000 for tag in CATEGORIES}
    # A count drawn anew of four stays right once in four; half the relations are coloured and may be swapped too.
    expected = {"counting": 0.45, "color_attr": 0.4, "position": 1 - 0.55 * 0.8, "two_object": 0.3}
    assert shares == pytest.approx({"single_object": 0, "colors": 0, **expected}, abs=0.05)


def test_swapped_colours_change_places() -> None:
    clauses = (Clause(shape="star", color="blue"), Clause(shape="square", color="red"))
    lie = corrupt(Description(tag="color_attr", clauses=clauses), Random(0), Corruption(swap=1.0))
    assert [(c.shape, c.color) for c in lie.clauses] == [("star", "red"), ("square", "blue")]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_prompt_files_are_what_the_seed_draws(split: str) -> None:
    assert (DATA / f"{split}.jsonl").read_text() == to_jsonl(draw_prompts()[split])
    assert shapes.prompts(split) == [json.loads(line) for line in to_jsonl(draw_prompts()[split]).splitlines()]


def test_no_prompt_is_in_both_splits() -> None:
    train, held_out = ([row["prompt"] for row in shapes.prompts(split)] for split in ("train", "held_out"))
    assert len(set(train)) == len(train) == 630
    assert Counter(row["tag"] for row in shapes.prompts("held_out")) == dict.fromkeys(CATEGORIES, 25)
    assert not set(train) & set(held_out)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown shapes model 'sd4'; write one of sd3, mini"):
        shapes.model_path("sd4")
    with pytest.raises(ValueError, match="unknown split 'test'; write 'train' or 'held_out'"):
        shapes.prompts("test")
