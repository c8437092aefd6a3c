"""Rows for `shapes/vlm`: many questions about the same pictures, which are read once for all of them."""

from __future__ import annotations

import math
import string
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from visalign.shapes.judges.claims import Look, draw_claim, look, share_in_common
from visalign.shapes.judges.damage import damage, draw_damage, vary
from visalign.shapes.judges.data import alter, draw_description
from visalign.shapes.judges.faults import Samples
from visalign.shapes.judges.questions import put
from visalign.shapes.judges.recipes import PhaseRecipe, QuestionRecipe, VlmRecipe
from visalign.shapes.judges.words import IMAGE, SPECIAL, pieces
from visalign.shapes.render import render
from visalign.shapes.scenes import Description, place
from visalign.shapes.verifier import verify

_RELATED = 0.7
_LENGTHY = 20
BORDERS = (32, 64, 128, 1024)
"""Longest questions, with their answers, of the parts of a batch."""


@dataclass(frozen=True)
class Branch:
    """A question and its answer as token numbers.

    Attributes:
        question: with the mark that an answer follows.
        answer: with the mark of its end.
        worth: what the loss of each token of the answer counts.
        caption: what the question holds against pictures; empty where it holds nothing.
        verdict: how far the caption is true of the last picture, and how far that agrees with the first; NaN where the
            question does not say.
    """

    question: list[int]
    answer: list[int]
    worth: list[float]
    caption: str
    verdict: tuple[float, float]

    def __len__(self) -> int:
        return len(self.question) + len(self.answer)


@dataclass(frozen=True)
class Row:
    """What all questions of a row see.

    Attributes:
        prefix: as token numbers.
        branches: the questions.
        pictures: their number.
        common: the share of things that the first and the last have in common; NaN where there is one or none.
    """

    prefix: list[int]
    branches: list[Branch]
    pictures: int
    common: float


@dataclass(frozen=True)
class Branches:
    """N questions with their answers, at most L tokens, padded on the right.

    Attributes:
        rows: which prefix each follows, (N,) int64.
        tokens: (N, L) int64.
        mask: (N, L) int64, 1 where there is a token.
        targets: (N, L) int64, the next token.
        weights: (N, L) float32, what its loss counts; 0 outside answers.
        ends: place of each question's last token, (N,) int64.
        captions: what the questions hold against pictures, N texts; empty where they hold none.
        verdicts: how far each caption is true of the last picture, and how far that agrees with the first, (N, 2)
            float32 in [0, 1]; NaN where the question does not say.
    """

    rows: Tensor
    tokens: Tensor
    mask: Tensor
    targets: Tensor
    weights: Tensor
    ends: Tensor
    captions: tuple[str, ...]
    verdicts: Tensor

    def to(self, device: str) -> Branches:
        """The same on a device."""
        return replace(self, **_moved(self, device))


@dataclass(frozen=True)
class Batch:
    """R prefixes with P pictures, and what is asked about them.

    Attributes:
        tokens: (R, L) int64, padded on the left.
        mask: (R, L) int64, 1 where there is a token.
        pixels: (P, 3, S, S) in [0, 1], in the order of their tokens.
        branches: all questions, those of about the same length together.
        ends: places of each row's first and last picture in `pixels`, (R, 2) int64; of no use in rows of none.
        common: the share of things that those have in common, (R,) float32 in [0, 1]; NaN in rows of one or none.
    """

    tokens: Tensor
    mask: Tensor
    pixels: Tensor
    branches: tuple[Branches, ...]
    ends: Tensor
    common: Tensor

    def to(self, device: str) -> Batch:
        """The same on a device."""
        return replace(self, branches=tuple(part.to(device) for part in self.branches), **_moved(self, device))


def _moved(holder: Batch | Branches, device: str) -> dict[str, Any]:
    values = {field.name: getattr(holder, field.name) for field in fields(holder)}
    return {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}


def collate(rows: Sequence[Row], pixels: Tensor, borders: Sequence[int] = BORDERS) -> Batch:
    """Rows as tensors; questions are padded to the longest between two borders."""
    prefixes = [torch.tensor(row.prefix) for row in rows]
    tokens = pad_sequence(prefixes, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(p) for p in prefixes], batch_first=True, padding_side="left")
    parts: list[list[tuple[int, Branch]]] = [[] for _ in borders]
    for number, row in enumerate(rows):
        for branch in row.branches:
            border = next(i for i, most in enumerate(borders) if len(branch) <= most)
            parts[border].append((number, branch))
    pictures = torch.tensor([row.pictures for row in rows])
    after = pictures.cumsum(0)
    return Batch(
        tokens=tokens,
        mask=mask,
        pixels=pixels,
        branches=tuple(_branches(part) for part in parts if part),
        ends=torch.stack([after - pictures, after - 1], 1),
        common=torch.tensor([row.common for row in rows]),
    )


def _branches(part: Sequence[tuple[int, Branch]]) -> Branches:
    rows, branches = zip(*part, strict=True)
    tokens = [torch.tensor(branch.question + branch.answer) for branch in branches]
    padded = pad_sequence(tokens, batch_first=True)
    return Branches(
        rows=torch.tensor(rows),
        tokens=padded,
        mask=pad_sequence([torch.ones_like(t) for t in tokens], batch_first=True),
        targets=padded.roll(-1, dims=1),
        weights=pad_sequence([_weights(branch) for branch in branches], batch_first=True),
        ends=torch.tensor([len(branch.question) - 1 for branch in branches]),
        captions=tuple(branch.caption for branch in branches),
        verdicts=torch.tensor([branch.verdict for branch in branches]),
    )


def _weights(branch: Branch) -> Tensor:
    # The last token of a question predicts the first of its answer; the answer's last one predicts nothing.
    return torch.tensor([0.0] * (len(branch.question) - 1) + branch.worth + [0.0])


def worth(answer: Sequence[int], digits: Collection[int]) -> list[float]:
    """What each token of an answer counts: 1 a digit, √n in all for n others, so that captions do not drown verdicts.

    A mark is decided by a digit or two; lost among the words of a long answer it would be learned last, as the
    most frequent one.

    Example:
        >>> worth([7, 7, 7, 3, 7], digits={3})
        [0.5, 0.5, 0.5, 1.0, 0.5]
    """
    words = sum(token not in digits for token in answer)
    return [1.0 if token in digits else words**-0.5 for token in answer]


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
