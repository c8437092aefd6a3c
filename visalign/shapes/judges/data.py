"""Captions that are true, captions with one wrong fact, and which caption is true of which scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from random import Random

import torch
from torch import Tensor

from visalign.shapes import prompts
from visalign.shapes.scenes import (
    CATEGORIES,
    COLORS,
    RELATIONS,
    SHAPES,
    Clause,
    Corruption,
    Description,
    Scene,
    corrupt,
    describe,
    place,
)

_WEIGHTS = (1, 2, 2, 1, 2, 2)  # two objects have more to get right than one
_DIRECTION = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))
_COSINE = 0.5  # the verifier's rule: within 60 degrees of the relation
_NOWHERE = 0.5

Change = Callable[[Description, Random], Description]


@cache
def held_out() -> frozenset[str]:
    """The captions that nothing is trained on."""
    return frozenset(row["prompt"] for row in prompts("held_out"))


def draw_description(rng: Random) -> Description:
    """A description of any category whose caption is not held out."""
    while True:
        description = describe(rng.choices(CATEGORIES, _WEIGHTS)[0], rng)
        if description.caption not in held_out():
            return description


@cache
def held_out_descriptions() -> tuple[Description, ...]:
    """What the held-out captions describe, one each, in alphabetical order of the captions."""
    rng, found = Random(0), dict[str, Description]()
    while len(found) < len(held_out()):
        for category in CATEGORIES:
            description = describe(category, rng)
            if description.caption in held_out():
                found.setdefault(description.caption, description)
    return tuple(found[caption] for caption in sorted(found))


def alter(description: Description, rng: Random) -> Description:
    """The same wording with one fact changed: a count, a colour, a shape, a relation, two colours swapped, or one
    object less. The new caption is false of every scene of the old one, and is not held out.
    """
    while True:
        changed = rng.choice(_CHANGES)(description, rng)
        if changed.clauses != description.clauses and changed.caption not in held_out():
            return changed


def _recount(description: Description, rng: Random) -> Description:
    if len(description.clauses) > 1:
        return description
    return corrupt(replace(description, tag="counting"), rng, Corruption(count=1, relation=0, swap=0))


def _recolor(description: Description, rng: Random) -> Description:
    used = [c.color for c in description.clauses]
    free = [c for c in COLORS if c not in used]
    return _revise(description, rng, lambda clause: replace(clause, color=clause.color and rng.choice(free)))


def _reshape(description: Description, rng: Random) -> Description:
    free = [s for s in SHAPES if s not in [c.shape for c in description.clauses]]
    return _revise(description, rng, lambda clause: replace(clause, shape=rng.choice(free)))


def _revise(description: Description, rng: Random, revise: Callable[[Clause], Clause]) -> Description:
    clauses = list(description.clauses)
    which = rng.randrange(len(clauses))
    clauses[which] = revise(clauses[which])
    return replace(description, clauses=tuple(clauses))


def _drop(description: Description, rng: Random) -> Description:
    kept = replace(rng.choice(description.clauses), relation=None)
    return replace(description, tag="colors" if kept.color else "single_object", clauses=(kept,))


_CHANGES: tuple[Change, ...] = (
    _recount,
    _recolor,
    _reshape,
    partial(corrupt, rates=Corruption(count=0, relation=1, swap=0)),
    partial(corrupt, rates=Corruption(count=0, relation=0, swap=1)),
    _drop,
)


@dataclass(frozen=True)
class Facts:
    """What N captions say, or what N scenes show; shapes are numbered as in `SHAPES`, colours as in `COLORS`.

    Attributes:
        counts: how many of each shape, (N, 5) int64.
        colors: colour of each shape, (N, 5) int64; -1 where there is none or nothing is said.
        centers: mean place of each shape, (N, 5, 2) float32; the middle where there is none.
        pair: what stands and what it is seen from, (N, 2) int64.
        direction: where it stands, unit vectors (N, 2) float32; zero where nothing is said.
    """

    counts: Tensor
    colors: Tensor
    centers: Tensor
    pair: Tensor
    direction: Tensor


def said(descriptions: Sequence[Description]) -> Facts:
    """What captions say."""
    facts = _blank(len(descriptions))
    for i, description in enumerate(descriptions):
        for clause in description.clauses:
            shape = SHAPES.index(clause.shape)
            facts.counts[i, shape] = clause.count
            facts.colors[i, shape] = COLORS.index(clause.color) if clause.color else -1
        first = description.clauses[0]
        if first.relation:
            facts.pair[i] = torch.tensor([SHAPES.index(c.shape) for c in description.clauses])
            facts.direction[i] = torch.tensor(_DIRECTION[RELATIONS.index(first.relation)])
    return facts


def shown(scenes: Sequence[Scene]) -> Facts:
    """What scenes show; objects of one shape have one colour in this world."""
    facts = _blank(len(scenes))
    for i, scene in enumerate(scenes):
        for shape, name in enumerate(SHAPES):
            group = [o for o in scene.objects if o.shape == name]
            if group:
                facts.counts[i, shape] = len(group)
                facts.colors[i, shape] = COLORS.index(group[0].color)
                facts.centers[i, shape] = torch.tensor([(o.x, o.y) for o in group]).mean(dim=0)
    return facts


def _blank(count: int) -> Facts:
    shapes = len(SHAPES)
    return Facts(
        counts=torch.zeros(count, shapes, dtype=torch.long),
        colors=torch.full((count, shapes), -1),
        centers=torch.full((count, shapes, 2), _NOWHERE),
        pair=torch.zeros(count, 2, dtype=torch.long),
        direction=torch.zeros(count, 2),
    )


def truth(scenes: Facts, captions: Facts) -> Tensor:
    """Which captions hold of which scenes, and name all that is in them: (S, C) bool.

    Example:
        >>> from visalign.shapes.scenes import place
        >>> rng = Random(0)
        >>> one, other = describe("colors", rng), describe("counting", rng)
        >>> truth(shown([place(one, rng), place(other, rng)]), said([one, other])).tolist()
        [[True, False], [False, True]]
    """
    counted = (scenes.counts[:, None] == captions.counts[None]).all(dim=2)
    colored = ((captions.colors[None] == -1) | (captions.colors[None] == scenes.colors[:, None])).all(dim=2)
    one, other = (scenes.centers[:, captions.pair[:, side]] for side in range(2))
    offset = one - other  # (S, C, 2)
    along = (offset * captions.direction).sum(dim=2)
    silent = (captions.direction == 0).all(dim=1)
    return counted & colored & (silent | (along > _COSINE * offset.norm(dim=2)))


CONTENT = len(SHAPES) * (len(COLORS) + 2)
"""Numbers that say what a scene shows."""


def content(facts: Facts) -> Tensor:
    """Scenes as numbers to regress on: counts by shape and colour, and places by shape, (N, 45) float32."""
    hot = torch.nn.functional.one_hot(facts.colors.clamp_min(0), len(COLORS)) * facts.counts[:, :, None]
    return torch.cat([hot.flatten(1).float(), 2 * (facts.centers - _NOWHERE).flatten(1)], dim=1)


def draw_scenes(count: int, rng: Random) -> tuple[list[Description], list[Scene]]:
    """Descriptions, in pairs that differ in one fact, and a scene of each; `count` is even."""
    descriptions: list[Description] = []
    for _ in range(count // 2):
        description = draw_description(rng)
        descriptions += [description, alter(description, rng)]
    return descriptions, [place(d, rng) for d in descriptions]
