"""UnifiedReward's comparison as Pref-GRPO (2508.20751) uses it: each picture's win rate among those of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.judge import Answer, Judge, Question, Served
from visalign.rewards.judged import GENERAL, GENERAL_GB, Judged, choice, mean_of_all, scores_of, thought
from visalign.rewards.lifting import frame_indices
from visalign.rewards.rubrics import DATA, QUOTED, Rubric, rubric_of
from visalign.types import InputError, Media, Prompts, Scores

SYSTEM = f"You are a strict judge who compares generated pictures. {DATA}"
ASKED = (
    "The first {half} of the pictures show candidate 1, the last {half} candidate 2. Both were made for this prompt:\n"
    f"{QUOTED}The better one shows more of what the prompt asks for; where both show all of it, the one with fewer "
    "flaws, then the more beautiful one. "
)
VERDICT = Rubric(ASKED + "Which candidate is better? Answer with its number, 1 or 2.", SYSTEM)
THINK = Rubric(
    ASKED + "Compare them point by point between <think> and </think>. End with <answer>Image 1 is better</answer> or "
    "<answer>Image 2 is better</answer>.",
    SYSTEM,
)
TIE = 0.01
CONCLUSIONS = {"Image 1 is better": 0.0, "Image 2 is better": 1.0}


@dataclass(frozen=True)
class Form:
    """A way to compare: what is asked, the longest answer, and P(the second is better) read from it."""

    rubric: Rubric
    max_tokens: int
    second: Callable[[Answer], float | None]


def second_by_number(answer: Answer) -> float | None:
    """P(2) / (P(1) + P(2)) at the first token; None where the judge gave no number."""
    return choice(answer, "2", "1")


def second_by_words(answer: Answer) -> float | None:
    """1 or 0 from the one conclusion that the form allows; None for anything else."""
    return None if answer.error else CONCLUSIONS.get(thought(answer.text) or "")


FORMS = {"verdict": Form(VERDICT, 1, second_by_number), "think": Form(THINK, 4096, second_by_words)}


def pairs_of(texts: Sequence[str], opponents: int | None = None) -> list[tuple[int, int]]:
    """Pairs of rows with the same prompt, (i, j) with i < j, in order: all of them, or a ring.

    Args:
        texts: the prompts.
        opponents: in a ring, each row of a prompt meets this many that follow it, and as many that precede it.

    Example:
        >>> pairs_of(["a", "b", "a", "a"])
        [(0, 2), (0, 3), (2, 3)]
        >>> pairs_of(["a"] * 5, opponents=1)
        [(0, 1), (0, 4), (1, 2), (2, 3), (3, 4)]
    """
    found: set[tuple[int, int]] = set()
    for text in dict.fromkeys(texts):
        rows = [i for i, other in enumerate(texts) if other == text]
        steps = range(1, len(rows) if opponents is None else min(opponents + 1, len(rows)))
        met = ((row, rows[(place + step) % len(rows)]) for place, row in enumerate(rows) for step in steps)
        found |= {(min(pair), max(pair)) for pair in met}
    return sorted(found)


def per_row(count: int, entries: Iterable[tuple[int, float]]) -> list[float | None]:
    """Mean of the values that stand beside each row number; None where none does.

    Example:
        >>> per_row(3, [(0, 1.0), (1, 0.0), (0, 0.5)])
        [0.75, 0.0, None]
    """
    held: list[list[float | None]] = [[] for _ in range(count)]
    for row, value in entries:
        held[row].append(value)
    return [mean_of_all(values) for values in held]


def outcome(preference: float) -> float:
    """A win (1) above 0.5, a defeat (0) below, a tie (0.5) within the rounding of a judge in half precision."""
    return 0.5 if abs(preference - 0.5) <= TIE else float(preference > 0.5)


class Pairwise(Judged):
    """(Wins + ties / 2) / comparisons in [0, 1] among the rows of the same prompt, each pair judged in both orders.

    A win is a preference above 0.5 after the orders are averaged, so a judge that looks at the place alone makes ties.
    Components: `preference`, its mean; `second`, how often the second place won. A row without another of its prompt
    is invalid. n rows of a prompt cost n·(n − 1) questions, or 2·n·opponents; a video shows 8 frames.

    Args:
        model: a vision-language model (folder or hub id), `shapes/vlm`, or a judge.
        server: base URL of an OpenAI-compatible server that serves the model, or a mapping with `url` and options of
            `ServerJudge`; None runs it here.
        form: `verdict` reads the probability of one number; `think` reasons first, as UnifiedReward-Think was trained.
        template: a file with a rubric of your own for this form, `{prompt}` in it.
        opponents: each row meets this many rows that follow it in its group, in a ring; None: all meet all.

    Raises:
        InputError: the form is unknown, opponents are less than 1, or the model or the template cannot be loaded.
    """

    spec = RewardSpec(
        name="pairwise",
        media=("image", "video"),
        inputs=("prompt",),
        kind="groupwise",
        range=(0.0, 1.0),
        weights=(GENERAL, Weights("CodeGoat24/UnifiedReward-Think-qwen-7b", "model.safetensors.index.json", "MIT")),
        memory_gb=GENERAL_GB,
        paper="2508.20751",
        tiny="shapes/vlm",
    )

    def __init__(
        self,
        model: str | Judge = GENERAL.repo,
        server: Served = None,
        form: Literal["verdict", "think"] = "verdict",
        template: str | None = None,
        opponents: int | None = None,
    ) -> None:
        if form not in FORMS:
            raise InputError(f"pairwise has no form {form!r}; write one of {', '.join(FORMS)}")
        if opponents is not None and opponents < 1:
            raise InputError(f"opponents {opponents} came; write 1 or more, or leave it out to let all meet all")
        super().__init__(model, server)
        self.form = FORMS[form]
        self.rubric = rubric_of(template, self.form.rubric)
        self.opponents = opponents

    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """Row i asks of its pairs with later rows j, k, …, in both orders: (i, j), (j, i), (i, k), (k, i)."""
        seen = media.pixels[:, frame_indices(media.pixels.shape[1])]  # (B, frames, 3, H, W)
        asked: list[list[Question]] = [[] for _ in prompts.texts]
        for i, j in pairs_of(prompts.texts, self.opponents):
            asked[i] += [self._ask(prompts.texts[i], a, b) for a, b in ((seen[i], seen[j]), (seen[j], seen[i]))]
        return asked

    def _ask(self, prompt: str, first: Tensor, second: Tensor) -> Question:
        text = self.rubric.fill({"prompt": prompt, "half": str(len(first))})
        return Question(text, (*first, *second), self.rubric.system, self.form.max_tokens)

    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """The win rate of each row."""
        count, places = len(prompts), [self.form.second(a) for row in answers for a in row]
        both = zip(pairs_of(prompts.texts, self.opponents), places[::2], places[1::2], strict=True)
        judged = [(pair, f, b) for pair, f, b in both if f is not None and b is not None]
        gains = [entry for (i, j), f, b in judged for entry in ((j, 0.5 + (f - b) / 2), (i, 0.5 + (b - f) / 2))]
        second = [(row, (f + b) / 2) for pair, f, b in judged for row in pair]
        parts = {"preference": per_row(count, gains), "second": per_row(count, second)}
        return scores_of(per_row(count, [(row, outcome(gain)) for row, gain in gains]), parts)
