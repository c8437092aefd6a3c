"""Rows for `shapes/vlm`: many questions about the same pictures, which are read once for all of them."""

from __future__ import annotations

import math
import string
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from visalign.shapes.judges.claims import Look, draw_claim, look, share_in_common
from visalign.shapes.judges.damage import damage, draw_damage, vary
from visalign.shapes.judges.data import alter, draw_description
from visalign.shapes.judges.faults import Samples
from visalign.shapes.judges.questions import put
from visalign.shapes.judges.recipes import PhaseRecipe, QuestionRecipe, VlmRecipe
from visalign.shapes.judges.rows import BORDERS, Batch, Branch, Row, collate, worth
from visalign.shapes.judges.words import IMAGE, SPECIAL, pieces
from visalign.shapes.render import render
from visalign.shapes.scenes import Description, place
from visalign.shapes.verifier import verify

_RELATED = 0.7
_LENGTHY = 20

Groups = dict[int, list[QuestionRecipe]]
"""Questions by the number of their pictures."""


def asked_in(recipe: VlmRecipe, number: int) -> Groups:
    """The questions of a phase with the wordings that are short enough; where none is, a question is left out."""
    phase = recipe.phases[number]
    groups: Groups = {}
    for question in recipe.questions.values():
        wordings = tuple(text for text in question.ask if len(text) <= phase.longest)
        if question.since <= number and wordings and len(question.answer) <= phase.longest:
            weight = question.weight * (phase.lengthy if len(question.answer) > _LENGTHY else 1.0)
            asked = question.model_copy(update={"ask": wordings, "weight": weight})
            groups.setdefault(question.pictures, []).append(asked)
    return groups


def _stills(described: Sequence[Sequence[Description]], rng: Random) -> Iterator[list[int]]:
    """Which picture each place shows: half of the videos stand still wherever the description does not change."""
    start = 0
    for group in described:
        still = len(group) > 2 and rng.random() < 0.5
        yield [start + (group.index(d) if still else i) for i, d in enumerate(group)]
        start += len(group)


class Batches:
    """The batches of a training, by number.

    Args:
        recipe: what is asked, how often.
        tokenizer: of the model.
        samples: of the base model.
        tokens: of a picture.
        borders: longest questions, with their answers, of the parts of a batch.
    """

    def __init__(
        self,
        recipe: VlmRecipe,
        tokenizer: PreTrainedTokenizerFast,
        samples: Samples,
        tokens: int,
        borders: Sequence[int] = BORDERS,
    ) -> None:
        self.recipe, self.tokenizer, self.samples = recipe, tokenizer, samples
        self.tokens, self.borders = tokens, borders
        self.groups = [asked_in(recipe, number) for number in range(len(recipe.phases))]
        words = pieces(text for q in recipe.questions.values() for text in q.ask)
        self.nonsense = [word.strip() for word in words if word.strip().isalpha()]
        self.digits = frozenset(self._encode("".join(f"{d} {d}" for d in string.digits)))
        self.seen = verify(samples.pixels, samples.rows).objects

    def phase(self, step: int) -> int:
        """The number of the phase that a step belongs to."""
        ends = list(accumulate(phase.steps for phase in self.recipe.phases[:-1]))
        return bisect_right(ends, step)

    def __call__(self, step: int) -> Batch:
        """The batch of a step; its rows show about as many pictures each, so that little is padded."""
        rng, number = Random(f"{self.recipe.seed} vlm {step}"), self.phase(step)
        groups = self.groups[number]
        totals = {n: sum(q.weight for q in group) for n, group in groups.items()}
        most = max(1, rng.choices(list(totals), list(totals.values()))[0])
        count = max(1, 2 * self.recipe.schedule.batch // (1 + most))
        few = [n for n in totals if n < 2] if most == 1 else [most]
        drawn = rng.choices(few, [totals[n] for n in few], k=count - 1)
        rows, pictures = [], []
        for pixels, looks, kinds in self._shown([most, *drawn], groups, rng):
            rows.append(self._row(looks, kinds, self.recipe.phases[number], rng))
            pictures.append(pixels)
        return collate(rows, torch.cat(pictures), self.borders)

    def _shown(
        self, counts: list[int], groups: Groups, rng: Random
    ) -> list[tuple[Tensor, list[Look], list[QuestionRecipe]]]:
        """For each row its pictures, what is known of them, and what may be asked."""
        described = [self._described(count, rng) for count in counts]
        scenes = [place(d, rng) for group in described for d in group]
        kinds, strength = draw_damage(len(scenes), self.recipe.damaged, rng.getrandbits(62))
        clean = vary(render(scenes, self.recipe.size, rng.getrandbits(62)), rng.getrandbits(62))
        pixels = damage(clean, kinds, strength, rng.getrandbits(62))
        flat = [d for group in described for d in group]
        looks = [look(d, s, float(x)) for d, s, x in zip(flat, scenes, strength, strict=True)]
        shown = [i for group in _stills(described, rng) for i in group]
        pixels, looks = pixels[shown], [looks[i] for i in shown]
        result, start = [], 0
        for count in counts:
            end = start + count
            if count == 1 and rng.random() < self.recipe.sampled:
                result.append((*self._sampled(rng), [q for q in groups[1] if q.quality]))
            else:
                result.append((pixels[start:end], looks[start:end], groups[count]))
            start = end
        return result

    def _sampled(self, rng: Random) -> tuple[Tensor, list[Look]]:
        """A sample of the base model, about which only looks are asked."""
        i = rng.randrange(len(self.samples.pixels))
        faulty, strength = bool(self.samples.faulty[i]), float(self.samples.strength[i])
        known = Look(draw_description(rng), self.seen[i], strength if faulty else 0.0, faulty)
        return self.samples.pixels[i : i + 1], [known]

    def _described(self, count: int, rng: Random) -> list[Description]:
        """Descriptions of the pictures of a row, one for each half; the two often differ in one fact, or not at all."""
        halves = [draw_description(rng) for _ in range(min(count, 2))]
        if count >= 2 and rng.random() < _RELATED:
            halves[1] = halves[0] if rng.random() < 0.4 else alter(halves[0], rng)
        return sorted(halves * (count // 2), key=halves.index) if count > 2 else halves

    def _row(self, looks: list[Look], kinds: list[QuestionRecipe], phase: PhaseRecipe, rng: Random) -> Row:
        """Questions until the next one does not fit any more."""
        system = f"<system>{rng.choice(self.recipe.systems)}<end>" if rng.random() < phase.systems else ""
        prefix = f"<bos>{system}<user>" + SPECIAL[IMAGE] * self.tokens * len(looks)
        branches: list[Branch] = []
        common = share_in_common(looks[0].seen, looks[-1].seen) if len(looks) > 1 else math.nan
        room = self.recipe.room * max(1, len(looks) // 2)
        while True:
            kind = rng.choices(kinds, [q.weight for q in kinds])[0]
            asked = put(kind, looks, draw_claim(looks, self.nonsense, phase.near, rng), rng)
            question, answer = self._encode(f"{asked.question}<end><assistant>"), self._encode(f"{asked.answer}<end>")
            verdict = (asked.grade, asked.kept)
            branch = Branch(question, answer, worth(answer, self.digits), asked.caption, verdict)
            room -= len(branch)
            if branches and room < 0:
                return Row(self._encode(prefix), branches, len(looks), common)
            branches.append(branch)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids
