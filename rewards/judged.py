"""Rewards that ask a judge: pure functions that read answers, and the class that asks and reads."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch

from visalign.rewards.base import Reward
from visalign.rewards.judge import Answer, Judge, Question, open_judge
from visalign.types import Media, Prompts, Scores


def mass(logprobs: Mapping[str, float], words: Iterable[str]) -> float:
    """Log of the summed probability of all tokens that read as one of the words, whatever their case and spaces.

    Where none is listed, the smallest listed log-probability bounds it from above and is returned.

    Example:
        >>> round(math.exp(mass({"Yes": math.log(0.5), " yes": math.log(0.25), "No": math.log(0.1)}, ["yes"])), 3)
        0.75
    """
    wanted = {w.strip().lower() for w in words}
    found = [v for token, v in logprobs.items() if token.strip().lower() in wanted]
    return math.log(sum(math.exp(v) for v in found)) if found else min(logprobs.values())


def probability_of(logprobs: Mapping[str, float], first: str, second: str) -> float:
    """P(first) / (P(first) + P(second)) at one position.

    Example:
        >>> round(probability_of({"Yes": -0.1, "No": -2.5}, "yes", "no"), 3)
        0.917
    """
    gap = mass(logprobs, [second]) - mass(logprobs, [first])
    return 1 / (1 + math.exp(min(gap, 700.0)))


def expected_digit(logprobs: Mapping[str, float], digits: Sequence[int]) -> float | None:
    """Σ d·P(d) / Σ P(d) over the digits that are listed at one position; None where none is.

    Example:
        >>> round(expected_digit({"4": math.log(0.45), "5": math.log(0.55)}, range(1, 6)), 2)
        4.55
    """
    listed = {d: sum(math.exp(v) for t, v in logprobs.items() if t.strip() == str(d)) for d in digits}
    total = sum(listed.values())
    return sum(d * p for d, p in listed.items()) / total if total > 0 else None


def scores_of(values: Sequence[float | None], components: Mapping[str, Sequence[float | None]] | None = None) -> Scores:
    """Scores from one number a row; None is invalid."""

    def column(numbers: Sequence[float | None]) -> torch.Tensor:
        return torch.tensor([math.nan if v is None else v for v in numbers], dtype=torch.float32)

    parts = {name: column(numbers) for name, numbers in (components or {}).items()}
    valid = torch.tensor([v is not None for v in values], dtype=torch.bool)
    return Scores(column(values).nan_to_num(0.0), parts, valid)


class Judged(Reward):
    """A reward that asks one or more questions a row and reads the answers.

    Args:
        model: `shapes/vlm`, a folder or a hub id; with a server, the name that it serves the model by.
        server: base URL of an OpenAI-compatible server; None runs the model here.
    """

    def __init__(self, model: str, server: str | None = None) -> None:
        self.judge: Judge = open_judge(model, server)

    @abstractmethod
    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """The questions of each row."""

    @abstractmethod
    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """Scores from the answers of each row; an answer with an error makes its row invalid."""

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B media."""
        asked = self.questions(media, prompts)
        answers = iter(self.judge.ask([q for row in asked for q in row]))
        return self.read([[next(answers) for _ in row] for row in asked], prompts)
