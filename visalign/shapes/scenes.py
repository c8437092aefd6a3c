"""The world: descriptions with captions and GenEval metadata, and scenes that satisfy them. No torch in here."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from random import Random
from typing import Any

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "black")
RELATIONS = ("left of", "right of", "above", "below")
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NUMBERS = {2: "two", 3: "three", 4: "four"}
FRAMES = ("{}", "a picture of {}", "a drawing of {}", "an image of {}")
ARTICLES = ("a", "one", "a single")
JOINS = ("and", "with")
MAX_WORDS = 9
MARGIN = 0.03
GAP = 0.06

_DIRECTION = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}
_PLURAL = {"cross": "crosses"}
_APART = 0.24
_LOOSE = {1: 0.1, 2: 0.05, 3: 0.04, 4: 0.04}
_RADII = {1: (0.18, 0.26), 2: (0.16, 0.20), 3: (0.14, 0.18), 4: (0.14, 0.18)}


@dataclass(frozen=True, kw_only=True)
class Object:
    """One thing in a picture; lengths are fractions of the image side, the origin is the upper left corner."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    """Radius of the circle around it."""


@dataclass(frozen=True)
class Scene:
    """Objects that do not overlap, on a plain ground."""

    objects: tuple[Object, ...]


@dataclass(frozen=True, kw_only=True)
class Clause:
    """What a caption says of one kind of object; `relation` is the place of this one as seen from the other clause."""

    shape: str
    count: int = 1
    color: str | None = None
    relation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a caption says, and with which words."""

    tag: str
    clauses: tuple[Clause, ...]
    frame: str = "{}"
    article: str = "a"
    join: str = "and"

    @property
    def caption(self) -> str:
        """The text, at most `MAX_WORDS` words."""
        return self.frame.format(self._bare())

    def _bare(self) -> str:
        nouns = [_noun(c, self.article) for c in self.clauses]
        if len(nouns) == 1:
            return nouns[0]
        return f"{nouns[0]} {self.clauses[0].relation or self.join} {nouns[1]}"

    def metadata(self) -> dict[str, Any]:
        """A row with GenEval's fields: tag, include, exclude, prompt. Of a relation, the reference comes first."""
        first, *rest = self.clauses
        ordered = [*rest, first] if first.relation else [first, *rest]
        include = [_requirement(c) for c in ordered]
        exclude = [{"class": c.shape, "count": c.count + 1} for c in self.clauses if self.tag == "counting"]
        return {"tag": self.tag, "include": include, "exclude": exclude, "prompt": self.caption}


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """How often captions lie; each rate is the chance that a fact is drawn anew, so it may stay right by luck."""

    count: float = 0.6
    """Counts of counting captions."""
    relation: float = 0.6
    """Relations."""
    swap: float = 0.4
    """Colours change places between two coloured objects."""
    presence: float = 0.0
    """One of two uncoloured objects is missing or doubled."""


def _noun(clause: Clause, article: str) -> str:
    words = [clause.color] if clause.color else []
    if clause.count > 1:
        return " ".join([NUMBERS[clause.count], *words, _PLURAL.get(clause.shape, clause.shape + "s")])
    words.append(clause.shape)
    return " ".join(["an" if article == "a" and words[0][0] in "aeiou" else article, *words])


def _requirement(clause: Clause) -> dict[str, Any]:
    row: dict[str, Any] = {"class": clause.shape, "count": clause.count}
    if clause.color:
        row["color"] = clause.color
    if clause.relation:
        row["position"] = [clause.relation, 0]
    return row


def describe(category: str, rng: Random) -> Description:
    """Draw what a caption of one GenEval category says, and a wording that fits in `MAX_WORDS` words.

    Raises:
        ValueError: the category is none of `CATEGORIES`.
    """
    if category not in CATEGORIES:
        raise ValueError(f"unknown category {category!r}; write one of {', '.join(CATEGORIES)}")
    description = Description(tag=category, clauses=_clauses(category, rng))
    if category == "single_object":
        description = replace(description, article=rng.choice(ARTICLES))
    if category == "two_object":
        description = replace(description, join=rng.choice(JOINS))
    room = MAX_WORDS - len(description.caption.split())
    return replace(description, frame=rng.choice([f for f in FRAMES if len(f.split()) - 1 <= room]))


def _clauses(category: str, rng: Random) -> tuple[Clause, ...]:
    one, two = rng.sample(SHAPES, 2)
    paint: list[str | None] = list(rng.sample(COLORS, 2))
    if category == "single_object":
        return (Clause(shape=one),)
    if category == "colors":
        return (Clause(shape=one, color=paint[0]),)
    if category == "counting":
        return (Clause(shape=one, count=rng.choice(list(NUMBERS)), color=paint[0] if rng.random() < 0.6 else None),)
    if category == "two_object":
        return Clause(shape=one), Clause(shape=two)
    if category == "color_attr":
        return Clause(shape=one, color=paint[0]), Clause(shape=two, color=paint[1])
    colors = paint if rng.random() < 0.5 else [None, None]
    return Clause(shape=one, color=colors[0], relation=rng.choice(RELATIONS)), Clause(shape=two, color=colors[1])


def corrupt(description: Description, rng: Random, rates: Corruption) -> Description:
    """What is really in the picture when the caption cannot be trusted; the wording stays, the facts are redrawn."""
    clauses = list(description.clauses)
    if description.tag == "counting" and rng.random() < rates.count:
        clauses[0] = replace(clauses[0], count=rng.randint(1, 4))
    if clauses[0].relation and rng.random() < rates.relation:
        clauses[0] = replace(clauses[0], relation=rng.choice(RELATIONS))
    if len(clauses) == 2 and clauses[0].color and rng.random() < rates.swap:
        first, second = clauses
        clauses = [replace(first, color=second.color), replace(second, color=first.color)]
    if description.tag == "two_object" and rng.random() < rates.presence:
        which = rng.randrange(2)
        clauses[which] = replace(clauses[which], count=rng.choice((0, 2)))
    return replace(description, clauses=tuple(clauses))


def place(description: Description, rng: Random) -> Scene:
    """A scene that shows exactly what is described; colours that are not named are drawn, one for each clause.

    One object stands near the middle, two stand side by side or one above the other, three and four near the corners.
    """
    kinds = [(c, c.color or rng.choice(COLORS)) for c in description.clauses for _ in range(c.count)]
    if description.tag == "counting":
        kinds = [(clause, kinds[0][1]) for clause, _ in kinds]
    slots = _slots(len(kinds), description.clauses[0].relation, rng)
    while not _fits(spots := _settle(slots, rng)):
        pass
    pairs = zip(kinds, spots, strict=True)
    return Scene(tuple(Object(shape=c.shape, color=p, x=x, y=y, radius=r) for (c, p), (x, y, r) in pairs))


def drift(scene: Scene, frames: int, rng: Random) -> list[Scene]:
    """The scene moving as a whole, evenly and inside the picture, from where it stands; two frames or more."""
    sides = ([(o.x, o.radius) for o in scene.objects], [(o.y, o.radius) for o in scene.objects])
    dx, dy = (rng.uniform(-min(at - r for at, r in side), 1 - max(at + r for at, r in side)) for side in sides)
    shares = [i / (frames - 1) for i in range(frames)]
    return [Scene(tuple(replace(o, x=o.x + s * dx, y=o.y + s * dy) for o in scene.objects)) for s in shares]


def _slots(count: int, relation: str | None, rng: Random) -> list[tuple[float, float]]:
    """Where objects belong, as x and y; of a relation the object comes first, then what it is seen from."""
    if count == 1:
        return [(0.5, 0.5)]
    if count == 2:
        dx, dy = _DIRECTION[relation or rng.choice(RELATIONS)]
        return [(0.5 + _APART * dx, 0.5 + _APART * dy), (0.5 - _APART * dx, 0.5 - _APART * dy)]
    corners = [(0.5 + _APART * dx, 0.5 + _APART * dy) for dx in (-1, 1) for dy in (-1, 1)]
    return rng.sample(corners, count)


def _settle(slots: list[tuple[float, float]], rng: Random) -> list[tuple[float, float, float]]:
    """Slots with a little disorder and a size, (x, y, radius) each."""
    loose = _LOOSE[len(slots)]
    shifted = [(x + rng.uniform(-loose, loose), y + rng.uniform(-loose, loose)) for x, y in slots]
    return [(x, y, rng.uniform(*_RADII[len(slots)])) for x, y in shifted]


def _fits(spots: list[tuple[float, float, float]]) -> bool:
    """Inside the image, and all clear of each other."""
    inside = all(r + MARGIN <= min(x, y) and max(x, y) <= 1 - r - MARGIN for x, y, r in spots)
    pairs = itertools.combinations(spots, 2)
    return inside and all(math.hypot(x - a, y - b) >= r + q + GAP for (x, y, r), (a, b, q) in pairs)
