"""GenEval's rules (2310.11513) on detected boxes: which objects count, how two of them stand, what a prompt earns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Detections = Mapping[str, Sequence["Detected"]]
"""Class → its objects, surest first."""

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""GenEval's confidences, on the scale of its Mask2Former; prompts that count ask for more."""
MOST_OBJECTS = 16
POSITION_MARGIN = 0.1
POSITION_COSINE = 0.5


@dataclass(frozen=True)
class Detected:
    """One object: its box (left, top, right, bottom) in pixels, the detector's confidence, and its colour if asked."""

    box: tuple[float, float, float, float]
    score: float
    color: str = ""


def iou(one: Detected, other: Detected) -> float:
    """Intersection over union of two boxes.

    Example:
        >>> iou(Detected((0, 0, 2, 2), 1.0), Detected((1, 0, 3, 2), 1.0))
        0.3333333333333333
    """
    sides = [max(0.0, min(one.box[i + 2], other.box[i + 2]) - max(one.box[i], other.box[i])) for i in (0, 1)]
    areas = [(d.box[2] - d.box[0]) * (d.box[3] - d.box[1]) for d in (one, other)]
    shared = sides[0] * sides[1]
    return shared / (sum(areas) - shared) if shared else 0.0


def kept(
    found: Sequence[Detected],
    tag: str,
    threshold: float = THRESHOLD,
    counting_threshold: float = COUNTING_THRESHOLD,
    overlap: float = 1.0,
) -> list[Detected]:
    """The objects of one class that count: sure enough, at most 16, and none that covers a surer one.

    Args:
        found: in any order.
        tag: GenEval's category; `counting` takes the other threshold.
        threshold: least confidence, exclusive.
        counting_threshold: the same where objects are counted.
        overlap: a box with more than this intersection over union is the same object; 1 keeps all, as in GenEval.
    """
    least = counting_threshold if tag == "counting" else threshold
    objects: list[Detected] = []
    for candidate in sorted((d for d in found if d.score > least), key=lambda d: -d.score):
        if all(iou(candidate, other) <= overlap for other in objects):
            objects.append(candidate)
    return objects[:MOST_OBJECTS]


def relations(one: Detected, other: Detected) -> set[str]:
    """Where one object is, seen from another: `left of`, `right of`, `above`, `below`, or none.

    A tenth of the summed box sides is taken off the offset of the centres on each axis; what is left, over the length
    of the offset, has to exceed a half.

    Example:
        >>> relations(Detected((0, 0, 2, 2), 1.0), Detected((8, 0, 10, 2), 1.0))
        {'left of'}
    """
    offsets, left = [], []
    for i in (0, 1):
        offset = (one.box[i] + one.box[i + 2] - other.box[i] - other.box[i + 2]) / 2
        sides = abs(one.box[i + 2] - one.box[i]) + abs(other.box[i + 2] - other.box[i])
        offsets.append(offset)
        left.append(math.copysign(max(0.0, abs(offset) - POSITION_MARGIN * sides), offset))
    if max(map(abs, left)) < 1e-3:
        return set()
    dx, dy = (v / math.hypot(*offsets) for v in left)
    holds = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, cosine in holds.items() if cosine > POSITION_COSINE}


def credit_terms(found: Detections, row: Mapping[str, Any]) -> list[float]:
    """One credit in [0, 1] for each thing that the prompt asks; all are 1 exactly where the picture is right.

    For a clause with count n and k objects found: max(0, 1 − |n − k| / n); for its colour the same with the objects of
    that colour, for its position 1 where every object stands so to every one of the other clause; 0 for both where the
    count is wrong, and for the position where the colour is. Clauses of one class share its objects, told apart by
    colour. An excluded class that reaches its count adds a 0.

    Args:
        found: the objects of every class in the row.
        row: GenEval's `include` and, if any, `exclude`.
    """
    terms: list[float] = []
    matched: list[Sequence[Detected]] = []
    include = row["include"]
    for clause in include:
        objects = found[clause["class"]]
        total = sum(other["count"] for other in include if other["class"] == clause["class"])
        group = [d for d in objects if "color" not in clause or d.color == clause["color"]]
        counted = len(objects) == total
        terms.append(_closeness(len(objects), total))
        if "color" in clause:
            terms.append(_closeness(len(group), clause["count"]) if counted else 0.0)
        complete = counted and ("color" not in clause or len(group) == clause["count"])
        if "position" in clause:
            relation, target = clause["position"]
            complete = complete and _all_stand(group, matched[target], relation)
            terms.append(float(complete))
        matched.append(group if complete else [])
    excluded = [0.0 for clause in row.get("exclude", ()) if len(found[clause["class"]]) >= clause["count"]]
    return terms + excluded


def _closeness(found: int, wanted: int) -> float:
    return max(0.0, 1 - abs(wanted - found) / wanted)


def _all_stand(group: Sequence[Detected], others: Sequence[Detected], relation: str) -> bool:
    return bool(others) and all(relation in relations(one, other) for one in group for other in others)


def strict_and_dense(terms: Sequence[float]) -> tuple[float, float]:
    """1 where every credit is 1, else 0; and the mean credit.

    Example:
        >>> strict_and_dense([1.0, 0.5])
        (0.0, 0.75)
    """
    return float(all(t == 1 for t in terms)), sum(terms) / len(terms)
