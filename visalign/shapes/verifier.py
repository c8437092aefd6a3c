"""Is what the caption says in the picture? GenEval's six categories, strictly and with partial credit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visalign.shapes.reading import Found, read_objects
from visalign.shapes.scenes import CATEGORIES, COLORS, RELATIONS, SHAPES

_AXIS = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}
_POSITION_MARGIN = 0.1
_POSITION_COSINE = 0.5


@dataclass(frozen=True)
class Seen:
    """One object that was read from a picture; lengths are fractions of the side, y grows downwards."""

    shape: str | None
    """None: it is there, but it is none of the shapes."""
    color: str
    center: tuple[float, float]
    extent: tuple[float, float]


@dataclass(frozen=True)
class Verdict:
    """Scores of B pictures.

    Attributes:
        strict: 1 where every clause holds, counts are exact and nothing else is in the picture, (B,) float32.
        graded: mean credit of the clauses and of the absence of other things, (B,) float32 in [0, 1]; 1 exactly where
            `strict` is 1.
        objects: what was seen in each picture.
        tags: the category of each row.
    """

    strict: Tensor
    graded: Tensor
    objects: tuple[tuple[Seen, ...], ...]
    tags: tuple[str, ...]

    def by_category(self) -> dict[str, float]:
        """Mean strict score of each category present, and `overall`, the mean of these means, as GenEval reports it."""
        means = {}
        for category in CATEGORIES:
            rows = [i for i, tag in enumerate(self.tags) if tag == category]
            if rows:
                means[category] = float(self.strict[rows].mean())
        return {**means, "overall": sum(means.values()) / max(1, len(means))}


def verify(pixels: Tensor, metadata: Sequence[Mapping[str, Any]]) -> Verdict:
    """Score pictures against GenEval metadata.

    Stricter than GenEval in one point: objects that the prompt does not name count against the picture, since captions
    of this world name everything there is.

    Args:
        pixels: (B, 3, S, S) in [0, 1].
        metadata: one row a picture with tag, include and exclude.

    Raises:
        ValueError: pictures and rows differ in number, or a row asks for what this world does not have.

    Example:
        >>> row = {"tag": "single_object", "include": [{"class": "star", "count": 1}], "exclude": []}
        >>> verify(torch.full((1, 3, 64, 64), 0.9), [row]).strict
        tensor([0.])
    """
    if len(pixels) != len(metadata):
        raise ValueError(f"{len(pixels)} pictures came with {len(metadata)} rows of metadata; give one row a picture")
    objects = _per_image(read_objects(pixels), len(pixels))
    graded = [grade(seen, row) for seen, row in zip(objects, metadata, strict=True)]
    return Verdict(
        strict=torch.tensor([float(g == 1.0) for g in graded]),
        graded=torch.tensor(graded, dtype=torch.float32),
        objects=objects,
        tags=tuple(row["tag"] for row in metadata),
    )


def _per_image(found: Found, count: int) -> tuple[tuple[Seen, ...], ...]:
    seen: list[list[Seen]] = [[] for _ in range(count)]
    columns = (found.image, found.shape, found.color, found.center, found.extent)
    for image, shape, color, center, extent in zip(*(c.tolist() for c in columns), strict=True):
        name = SHAPES[shape] if shape >= 0 else None
        seen[image].append(Seen(name, COLORS[color], (center[0], center[1]), (extent[0], extent[1])))
    return tuple(tuple(s) for s in seen)


def grade(seen: Sequence[Seen], row: Mapping[str, Any]) -> float:
    """Mean of one term for each requirement and one for the absence of anything else; 1.0 exactly if all hold."""
    include = row["include"]
    classes = [_known(clause["class"], SHAPES) for clause in include]
    groups = [[s for s in seen if s.shape == name] for name in classes]
    terms = []
    for clause, group in zip(include, groups, strict=True):
        wanted = clause["count"]
        terms.append(max(0.0, 1 - abs(len(group) - wanted) / wanted))
        if "color" in clause:
            color = _known(clause["color"], COLORS)
            right = sum(s.color == color for s in group)
            terms.append(right / max(wanted, len(group)))
        if "position" in clause:
            relation, reference = clause["position"]
            terms.append(_placed(group, groups[reference], _known(relation, RELATIONS)))
    strays = len(seen) - sum(len(group) for group in groups)
    terms.append(1 / (1 + strays))
    terms += [0.0 for clause in row["exclude"] if _count(seen, clause) >= clause["count"]]
    return sum(terms) / len(terms)


def _count(seen: Sequence[Seen], clause: Mapping[str, Any]) -> int:
    color = clause.get("color")
    return sum(s.shape == clause["class"] and color in (None, s.color) for s in seen)


def _placed(group: Sequence[Seen], others: Sequence[Seen], relation: str) -> float:
    """How well the best pair stands as asked: 1 where GenEval's rule holds, else below 1 by the angle that is missing.

    GenEval takes a tenth of the summed box sides off the offset on each axis and asks that what is left points within
    60 degrees of the relation.
    """
    return max((_along(one, other, relation) for one in group for other in others), default=0.0)


def _along(one: Seen, other: Seen, relation: str) -> float:
    offset = []
    for axis in range(2):
        step = one.center[axis] - other.center[axis]
        slack = _POSITION_MARGIN * (one.extent[axis] + other.extent[axis])
        offset.append(math.copysign(max(0.0, abs(step) - slack), step))
    length = math.hypot(*offset)
    if length == 0:
        return 0.0
    cosine = (offset[0] * _AXIS[relation][0] + offset[1] * _AXIS[relation][1]) / length
    return 1.0 if cosine > _POSITION_COSINE else 0.5 * (1 + cosine) / (1 + _POSITION_COSINE)


def _known(name: str, allowed: Sequence[str]) -> str:
    if name not in allowed:
        raise ValueError(f"{name!r} is not in the shapes world; metadata may name {', '.join(allowed)}")
    return name
