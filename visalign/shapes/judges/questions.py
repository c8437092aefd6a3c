"""What `shapes/vlm` is asked about pictures: wordings, and every fact that an answer can need."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from visalign.shapes.judges.claims import Claim, Look, counted, hold, share_in_common, share_kept, statements
from visalign.shapes.judges.recipes import QuestionRecipe
from visalign.shapes.scenes import COLORS, SHAPES, Clause
from visalign.shapes.verifier import Seen

_TURNING = ("without", "free", "no", "nothing")
"""Words that turn the meaning of a wording."""
ALIKE = 0.3
"""Pictures are in one style whose damage differs by less: nothing else is a style in this world."""
KEPT = "the background is plain"
WHOLE = "the shapes are whole"
DONE = "All of the instruction was carried out."


def slots(looks: Sequence[Look], claim: Claim, rng: Random) -> dict[str, str]:
    """Everything that a wording or an answer may name; what compares pictures takes the first and the last."""
    facts = statements(claim.description)
    found = {
        "prompt": claim.text,
        "follow": json.dumps(facts),
        "keep": json.dumps([KEPT]),
        "quality": json.dumps([WHOLE]),
    }
    if looks:
        found |= _marks(looks[-1], claim.grades[-1]) | _objects(looks[-1], rng)
        found |= _checked(facts, claim, looks[-1], rng)
    if len(looks) > 1:
        found |= _compared(looks, claim, rng)
    return found


def _yes(holds: bool) -> str:
    return "Yes" if holds else "No"


def _marks(one: Look, fit: float) -> dict[str, str]:
    """Marks of three kinds: `fit` to the prompt, `look` of the picture, and both together."""
    values = {"fit": fit, "look": 1 - one.strength, "mark": fit * (1 - one.strength / 2)}
    scales = {"05": (0, 5), "15": (1, 5), "14": (1, 4), "25": (0, 25)}
    marks = {f"{n}{s}": str(a + round((b - a) * v)) for n, v in values.items() for s, (a, b) in scales.items()}
    return {**marks, "shows": _yes(fit == 1), "flawed": _yes(one.flawed), "clean": _yes(not one.flawed)}


def _objects(one: Look, rng: Random) -> dict[str, str]:
    """What can be counted and named in a picture."""
    counts = Counter(s.shape for s in one.seen)
    present = rng.choice([s for s in one.seen if s.shape] or [Seen("star", "red", (0.5, 0.5), (0.3, 0.3))])
    shape = str(present.shape) if rng.random() < 0.7 else rng.choice(SHAPES)
    plural = counted(Clause(shape=shape, count=2)).split()[-1]
    return {
        "seen": replace(one.description, frame="{}").caption,
        "caption": one.description.caption,
        "total": str(len(one.seen)),
        "shapes": plural,
        "number": str(counts[shape]),
        "thing": str(present.shape),
        "color": present.color,
    } | _presence(one, present, rng)


def _presence(one: Look, present: Seen, rng: Random) -> dict[str, str]:
    """An object by shape, or by colour and shape, and whether there is one."""
    shape, color = str(present.shape), present.color
    if rng.random() < 0.3:
        shape = rng.choice((shape, rng.choice(SHAPES)))
        return {"object": shape, "present": _yes(any(s.shape == shape for s in one.seen))}
    other = rng.random()
    if other < 0.3:
        shape = rng.choice(SHAPES)
    if 0.25 < other < 0.6:
        color = rng.choice(COLORS)
    return {"object": f"{color} {shape}", "present": _yes(any((s.shape, s.color) == (shape, color) for s in one.seen))}


def _checked(facts: Sequence[str], claim: Claim, one: Look, rng: Random) -> dict[str, str]:
    """A statement and whether it holds."""
    pairs = list(zip(facts, hold(claim.description, one.seen), strict=True))
    pairs += [(KEPT, not one.flawed), (WHOLE, not one.flawed)]
    pairs.append((DONE, claim.grades[-1] == 1))
    fact, holds = rng.choice(pairs)
    return {"fact": fact, "holds": _yes(holds)}


def _compared(looks: Sequence[Look], claim: Claim, rng: Random) -> dict[str, str]:
    """Which of two pictures is better, how much they share, and whether they agree."""
    first, last = looks[0], looks[-1]
    # Of two that are equal in all that counts either answer is right, half of the time.
    ranks = [(g, -one.strength, rng.random()) for g, one in zip(claim.grades, looks, strict=True)]
    better = ranks[-1] > ranks[0]
    kept, shared = share_kept(first.seen, last.seen, claim.description), share_in_common(first.seen, last.seen)
    return {
        "better": _yes(better),
        "winner": "2" if better else "1",
        "first_seen": replace(first.description, frame="{}").caption,
        "kept25": str(round(25 * kept)),
        "kept14": str(1 + round(3 * kept)),
        "shared15": str(1 + round(4 * shared)),
        "same": _yes(shared == 1),
        "alike": _yes(abs(first.strength - last.strength) < ALIKE),
    }


def agreement(answer: str, looks: Sequence[Look], claim: Claim) -> float:
    """How far the last picture agrees with the first, in the way that an answer speaks of; NaN where it does not."""
    if "{kept" in answer:
        return share_kept(looks[0].seen, looks[-1].seen, claim.description)
    return share_in_common(looks[0].seen, looks[-1].seen) if "{shared" in answer or "{same}" in answer else math.nan


def fill(text: str, found: Mapping[str, str]) -> str:
    """A wording with its slots filled; braces that are no slot stay."""
    for name, value in found.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def shorten(wording: str, rng: Random) -> str:
    """The wording, or in one of three cases without a tenth of its words, so that no single word decides."""
    if rng.random() > 0.33:
        return wording
    lines = ([w for w in line.split(" ") if _fixed(w) or rng.random() > 0.1] for line in wording.split("\n"))
    return "\n".join(" ".join(line) for line in lines)


def _fixed(word: str) -> bool:
    return "{" in word or "<" in word or word in _TURNING


@dataclass(frozen=True)
class Asked:
    """A question about pictures.

    Attributes:
        question: its words.
        answer: the right answer.
        caption: what it holds against the last picture; empty where it holds nothing.
        grade: how far that is true, by the verifier's partial credit, in [0, 1]; NaN without a caption.
        kept: how far the last picture agrees with the first, in [0, 1]; NaN where the answer does not say.
    """

    question: str
    answer: str
    caption: str
    grade: float
    kept: float


def put(recipe: QuestionRecipe, looks: Sequence[Look], claim: Claim, rng: Random) -> Asked:
    """A question in one of its wordings."""
    found, wording = slots(looks, claim, rng), rng.choice(recipe.ask)
    caption = claim.caption if looks and "{prompt}" in wording else ""
    return Asked(
        question=fill(shorten(wording, rng), found),
        answer=fill(recipe.answer, found),
        caption=caption,
        grade=claim.grades[-1] if caption else math.nan,
        kept=agreement(recipe.answer, looks, claim),
    )
