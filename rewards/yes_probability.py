"""RewardDance (2509.08826): the probability that a judge answers yes to whether a picture beats a reference.

The verdict comes first, so that its first token is the score; reasons follow it where they are asked for. The reference
is shown in both places and the two answers are averaged, so that a taste for the first or second place cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from visalign.rewards.base import RewardSpec
from visalign.rewards.judge import Answer, Judge, Question, Served
from visalign.rewards.judged import GENERAL, GENERAL_GB, Judged, both_orders, choice, mean_of_all, scores_of
from visalign.rewards.references import references
from visalign.rewards.rubrics import DATA, QUOTED, Rubric
from visalign.types import InputError, Media, Prompts, Scores

TASK = "A better picture shows more of what its prompt asks for; where both show all of it, the one with fewer flaws."
SYSTEM = f"You are a strict judge of generated pictures. {DATA} The task to judge by: "
ALONE = Rubric(
    f"Picture {{last}} was made for this prompt:\n{QUOTED}"
    "Judged by the task, does picture {last} show what the prompt asks for? Answer Yes or No."
)
PAIR = Rubric(
    f"Pictures {{first}} and {{last}} were made for this prompt:\n{QUOTED}"
    "Judged by the task, is picture {last} better than picture {first}? Answer Yes or No."
)
EXAMPLE = Rubric("Example, pictures {first} to {last}:\n" + QUOTED + "Answer: {verdict}\n\n")
REASONS = " Write Yes or No as the first word, then your reasons in at most three sentences."
REASON_TOKENS = 160
VERDICTS = {True: "Yes", False: "No"}


def preface(examples: Sequence[Mapping[str, Any]], count: int) -> tuple[str, tuple[Tensor, ...]]:
    """What is shown before the question: the text of the examples, and their pictures in order.

    Args:
        examples: each with `prompt`, `pictures` (paths or tensors) and `verdict` (true or false).
        count: pictures an example: 2 with a reference (it comes first), else 1.

    Raises:
        InputError: a field is missing, or an example has not `count` readable pictures.
    """
    text, shown = "", tuple[Tensor, ...]()
    for row in examples:
        if set(row) != {"prompt", "pictures", "verdict"} or not isinstance(row["verdict"], bool):
            raise InputError(
                f"yes_probability got the example {dict(row)!r:.80}; write prompt, pictures (a list of paths) and "
                f"verdict (true or false)"
            )
        (pictures,) = references(Prompts((row["prompt"],), (row,)), "pictures", "yes_probability")
        if len(pictures) != count:
            raise InputError(
                f"yes_probability can read {len(pictures)} pictures of its example {row['prompt']!r}; give {count}"
                f"{': the reference, then the candidate' if count == 2 else ''}"
            )
        shown += pictures
        text += EXAMPLE.fill(places(len(shown), count) | {"prompt": row["prompt"], "verdict": VERDICTS[row["verdict"]]})
    return text, shown


def places(last: int, count: int) -> dict[str, str]:
    """The numbers, from 1, of the first and the last of `count` pictures that end at `last`."""
    return {"first": str(last - count + 1), "last": str(last)}


def beats(yes: Sequence[float | None]) -> float | None:
    """How much the candidate is preferred, averaged over references; None where an answer is missing.

    Args:
        yes: P(second is better) of (reference, candidate), (candidate, reference), (reference', candidate), …

    Example:
        >>> beats([0.75, 0.25]), beats([0.9, 0.9])
        (0.75, 0.5)
    """
    return mean_of_all([both_orders(*pair) for pair in zip(yes[::2], yes[1::2], strict=True)])


class YesProbability(Judged):
    """P(yes) in [0, 1]: whether the candidate is better than its reference (0.5: as good); without one, if it is right.

    Component `second`, with a reference: how often the second place won; far from 0.5 the judge looks at places.

    Args:
        model: a vision-language model (folder or hub id), `shapes/vlm`, or a judge.
        server: base URL of an OpenAI-compatible server that serves the model, or a mapping with `url` and options of
            `ServerJudge`; None runs it here.
        reference: the column that names the reference picture, or several; None asks about the prompt alone.
        task: what counts, in your words.
        examples: judgements shown beforehand, each with `prompt`, `pictures` and `verdict`.
        reasoning: ask for reasons after the verdict; they stand in `answers(...)` and do not move the score.

    Raises:
        InputError: the model or an example cannot be loaded; (in `score`) a prompt lacks the column.
    """

    spec = RewardSpec(
        name="yes_probability",
        inputs=("prompt",),
        range=(0.0, 1.0),
        weights=(GENERAL,),
        memory_gb=GENERAL_GB,
        paper="2509.08826",
        tiny="shapes/vlm",
    )

    def __init__(
        self,
        model: str | Judge = GENERAL.repo,
        server: Served = None,
        reference: str | None = None,
        task: str = TASK,
        examples: Sequence[Mapping[str, Any]] = (),
        reasoning: bool = False,
    ) -> None:
        super().__init__(model, server)
        self.reference = reference
        self.system = SYSTEM + task
        self.preface, self.shown = preface(examples, 1 if reference is None else 2)
        self.ending, self.max_tokens = (REASONS, REASON_TOKENS) if reasoning else ("", 1)
        if reference is not None:
            self.spec = replace(self.spec, inputs=("prompt", reference))

    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """One question a row; with references, two for each: (reference, candidate), (candidate, reference)."""
        rows = zip(prompts.texts, media.images, strict=True)
        if self.reference is None:
            return [[self._ask(ALONE, text, (image,))] for text, image in rows]
        pools = references(prompts, self.reference, self.spec.name)
        return [
            [self._ask(PAIR, text, order) for r in pool for order in ((r, image), (image, r))]
            for (text, image), pool in zip(rows, pools, strict=True)
        ]

    def _ask(self, rubric: Rubric, prompt: str, pictures: tuple[Tensor, ...]) -> Question:
        images = (*self.shown, *pictures)
        text = rubric.fill(places(len(images), len(pictures)) | {"prompt": prompt})
        return Question(self.preface + text + self.ending, images, self.system, self.max_tokens)

    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """The yes probability of each row."""
        yes = [[choice(a, "yes", "no") for a in row] for row in answers]
        if self.reference is None:
            return scores_of([mean_of_all(row) for row in yes])
        return scores_of([beats(row) for row in yes], {"second": [mean_of_all(row) for row in yes]})
