"""Rewards that ask a judge: pure functions that read answers, and the class that asks and reads.

An answer is read in one form only, the one that was asked for. All else (an opener such as "Thought process:", a lone
symbol, a number somewhere in a sentence) is no judgement: None, an invalid row, never a low or a middling score.
"""

from __future__ import annotations

import json
import math
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from visalign.rewards.base import Reward, Weights
from visalign.rewards.judge import Answer, Judge, Question, Served, open_judge
from visalign.rewards.judge_reading import unfenced
from visalign.rewards.references import references
from visalign.types import Media, Prompts, Scores

GENERAL = Weights("Qwen/Qwen3-VL-8B-Instruct", "model.safetensors.index.json", "Apache-2.0")
"""The judge of rewards that need no weights of their own."""
GENERAL_GB = 17.5
MINIMUM_MASS = 0.1
"""Least probability on the answers that were asked for; below it the judge was saying something else."""

_EDGES = " \t\r\n▁Ġ"
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_THOUGHT = re.compile(
    r"\s*(?:(?:<think>)?(?:(?!</?think>|<answer>).)*</think>\s*)?<answer>([^<>]*)</answer>\s*", re.DOTALL
)


def _word(token: str) -> str:
    """A token as a word: no case, no white space, no word-start mark of a vocabulary."""
    return token.strip(_EDGES).lower()


def listed(logprobs: Mapping[str, float], words: Iterable[str]) -> float:
    """Summed probability of all listed tokens that read as one of the words; 0 where none is listed.

    Example:
        >>> round(listed({"Yes": math.log(0.5), " no": math.log(0.25), ":": math.log(0.2)}, ["yes", "no"]), 3)
        0.75
    """
    wanted = {_word(w) for w in words}
    return sum(math.exp(v) for token, v in logprobs.items() if _word(token) in wanted)


def mass(logprobs: Mapping[str, float], words: Iterable[str]) -> float:
    """Log of the summed probability of all tokens that read as one of the words, whatever their case and spaces.

    Where none is listed, two numbers bound it from above: the smallest listed log-probability, and what the listed
    tokens leave of 1. The smaller one is returned.

    Example:
        >>> round(math.exp(mass({"Yes": math.log(0.5), " yes": math.log(0.25), "No": math.log(0.1)}, ["yes"])), 3)
        0.75
    """
    wanted = {_word(w) for w in words}
    found = [v for token, v in logprobs.items() if _word(token) in wanted]
    if not found:
        left = 1 - sum(math.exp(v) for v in logprobs.values())
        return min([*logprobs.values(), math.log(max(left, 1e-9))])
    top = max(found)
    return top + math.log(sum(math.exp(v - top) for v in found)) if top > -math.inf else top


def probability_of(logprobs: Mapping[str, float], first: str, second: str) -> float:
    """P(first) / (P(first) + P(second)) at one position.

    Example:
        >>> round(probability_of({"Yes": -0.1, "No": -2.5}, "yes", "no"), 3)
        0.917
    """
    gap = mass(logprobs, [second]) - mass(logprobs, [first])
    return 1 / (1 + math.exp(min(gap, 700.0)))


def choice(answer: Answer, first: str, second: str) -> float | None:
    """P(first) / (P(first) + P(second)) at an answer's first position; None where the call failed or said neither.

    Example:
        >>> choice(Answer(":", logprobs=({":": -0.01, "Yes": -6.0, "No": -9.0},)), "yes", "no") is None
        True
    """
    if answer.error or not answer.logprobs or listed(answer.logprobs[0], (first, second)) < MINIMUM_MASS:
        return None
    return probability_of(answer.logprobs[0], first, second)


def expected_digit(logprobs: Mapping[str, float], digits: Sequence[int]) -> float | None:
    """Σ d·P(d) / Σ P(d) over the digits that are listed at one position; None where none is.

    Example:
        >>> round(expected_digit({"4": math.log(0.45), "5": math.log(0.55)}, range(1, 6)), 2)
        4.55
    """
    probabilities = {d: listed(logprobs, [str(d)]) for d in digits}
    total = sum(probabilities.values())
    return sum(d * p for d, p in probabilities.items()) / total if total > 0 else None


def both_orders(forward: float | None, backward: float | None) -> float | None:
    """How much b is preferred to a, from P(second is better) of (a, b) and of (b, a); a bias for a place cancels.

    Example:
        >>> both_orders(0.9, 0.9), both_orders(0.75, 0.25), both_orders(0.9, None)
        (0.5, 0.75, None)
    """
    return None if forward is None or backward is None else 0.5 + (forward - backward) / 2


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean; None where there is no value, or where one is missing."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of what is there; None where nothing is."""
    return mean_of_all([v for v in values if v is not None])


def labelled(text: str, label: str) -> float | None:
    r"""The number of the one line that reads `label: number` and nothing else; None where no line or several do.

    Example:
        >>> labelled("Sharp and bright.\n**Final Score:** 4.5", "Final Score")
        4.5
        >>> labelled("I was told to write Final Score: 5", "Final Score") is None
        True
    """
    line = re.compile(rf"[ \t#*-]*{re.escape(label)}\**[ \t]*:\**[ \t]*\**{_NUMBER}\**\.?[ \t]*")
    found = [match[1] for match in map(line.fullmatch, text.splitlines()) if match]
    return float(found[0]) if len(found) == 1 else None


def thought(text: str) -> str | None:
    """What stands in `<answer>…</answer>`, after optional thoughts that end in `</think>`; None for any other text.

    Example:
        >>> thought("<think>The first is sharper.</think><answer>Image 1 is better</answer>")
        'Image 1 is better'
    """
    match = _THOUGHT.fullmatch(text)
    return match[1].strip() if match else None


def json_object(text: str) -> dict[str, Any] | None:
    r"""The JSON object that a text is, bare or in one code block; None for any other text.

    Example:
        >>> json_object('```json\n{"score": [20, 15]}\n```'), json_object('Score: {"score": [20, 15]}')
        ({'score': [20, 15]}, None)
    """
    try:
        value = json.loads(unfenced(text))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def numbers(value: object, count: int, low: float, high: float) -> list[float] | None:
    """A JSON list of `count` numbers within [low, high]; None for anything else."""
    if not isinstance(value, list) or len(value) != count or not all(type(v) in (int, float) for v in value):
        return None
    return [float(v) for v in value] if all(low <= v <= high for v in value) else None


def scores_of(values: Sequence[float | None], components: Mapping[str, Sequence[float | None]] | None = None) -> Scores:
    """Scores from one number a row; None is invalid."""

    def column(numbers: Sequence[float | None]) -> Tensor:
        return torch.tensor([math.nan if v is None else v for v in numbers], dtype=torch.float32)

    parts = {name: column(numbers) for name, numbers in (components or {}).items()}
    valid = torch.tensor([v is not None for v in values], dtype=torch.bool)
    return Scores(column(values).nan_to_num(0.0), parts, valid)


def shown(media: Media, prompts: Prompts, source: str | None, reward: str) -> list[tuple[Tensor, ...]]:
    """What a judge sees of each row: the picture, after what it was made from; nothing where that cannot be read.

    Args:
        media: B rows; first frames are shown.
        prompts: B rows.
        source: the column of the pictures that it was made from, or None.
        reward: who asks, for the message.

    Raises:
        InputError: a prompt lacks the column.
    """
    if source is None:
        return [(image,) for image in media.images]
    sources = references(prompts, source, reward)
    return [(*before, image) if before else () for before, image in zip(sources, media.images, strict=True)]


def _placed(question: Question, device: torch.device) -> Question:
    """The question with all its pictures where the media are: references come from files, and a judge follows them."""
    return replace(question, images=tuple(image.detach().to(device) for image in question.images))


class Judged(Reward):
    """A reward that asks one or more questions a row and reads the answers.

    Args:
        model: `shapes/vlm`, a folder or a hub id; with a server, the name that it serves the model by; or a judge.
        server: base URL of an OpenAI-compatible server, or a mapping with `url` and options of `ServerJudge`; None runs
            the model here.
    """

    def __init__(self, model: str | Judge, server: Served = None) -> None:
        self.judge: Judge = model if isinstance(model, Judge) else open_judge(model, server)

    @abstractmethod
    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """The questions of each row."""

    @abstractmethod
    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """Scores from the answers of each row; an answer with an error makes its row invalid."""

    def answers(self, media: Media, prompts: Prompts) -> list[list[Answer]]:
        """The answers of each row as the judge gave them, with its reasons."""
        asked = self.questions(media, prompts)
        given = iter(self.judge.ask([_placed(q, media.pixels.device) for row in asked for q in row]))
        return [[next(given) for _ in row] for row in asked]

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B media."""
        return self.read(self.answers(media, prompts), prompts)
