"""What `shapes/vlm` learns from, as tensors: pictures that are read once, and many questions that follow each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
