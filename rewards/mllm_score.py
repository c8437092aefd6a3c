"""UniWorld-V2's training-free reward (2510.16888): the expectation over the digits that a judge could answer with."""

from __future__ import annotations

from dataclasses import replace

from visalign.rewards.base import RewardSpec
from visalign.rewards.judge import Answer, Judge, Question, Served
from visalign.rewards.judged import GENERAL, GENERAL_GB, MINIMUM_MASS, Judged, expected_digit, listed, scores_of, shown
from visalign.rewards.rubrics import DATA, EDITED_BY, MADE_FOR, Rubric
from visalign.types import Media, Prompts, Scores

DIGITS = range(6)
SYSTEM = f"You are a strict judge of generated pictures. {DATA}"
PICTURE = Rubric(
    MADE_FOR + "How well does it show what the prompt asks for? 0 is nothing of it, 5 is all of it without a flaw. "
    "Answer with one digit from 0 to 5.",
    SYSTEM,
)
EDIT = Rubric(
    EDITED_BY + "How well was the instruction carried out, with all else left as it was? 0 is not at all, 5 is in full "
    "and without a flaw. Answer with one digit from 0 to 5.",
    SYSTEM,
)


def digit_score(answer: Answer) -> float | None:
    """Expected digit / 5, in [0, 1]; None where the call failed or the judge was about to say something else.

    Example:
        >>> import math
        >>> round(digit_score(Answer("5", logprobs=({"4": math.log(0.45), "5": math.log(0.55)},))), 2)
        0.91
    """
    if answer.error or not answer.logprobs or listed(answer.logprobs[0], map(str, DIGITS)) < MINIMUM_MASS:
        return None
    digit = expected_digit(answer.logprobs[0], DIGITS)
    return None if digit is None else digit / DIGITS[-1]


class MLLMScore(Judged):
    """Σ d·P(d) / 5 over the digits 0 … 5 at the first token, in [0, 1]: one forward, and finer than the digit itself.

    Args:
        model: a vision-language model (folder or hub id), `shapes/vlm`, or a judge.
        server: base URL of an OpenAI-compatible server that serves the model, or a mapping with `url` and options of
            `ServerJudge`; None runs it here.
        source: for edits, the column of the picture that was edited (`source` is also the pipeline's own); None
            judges pictures made from the prompt alone.

    Raises:
        InputError: the model cannot be loaded; (in `score`) a prompt lacks the column.
    """

    spec = RewardSpec(
        name="mllm_score",
        inputs=("prompt",),
        range=(0.0, 1.0),
        weights=(GENERAL,),
        memory_gb=GENERAL_GB,
        paper="2510.16888",
        tiny="shapes/vlm",
    )

    def __init__(self, model: str | Judge = GENERAL.repo, server: Served = None, source: str | None = None) -> None:
        super().__init__(model, server)
        self.source = source
        if source is not None:
            self.spec = replace(self.spec, inputs=("prompt", source))

    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """One question a row; none where the source cannot be read."""
        rubric = PICTURE if self.source is None else EDIT
        rows = zip(prompts.texts, shown(media, prompts, self.source, self.spec.name), strict=True)
        return [[Question(rubric.fill({"prompt": t}), seen, rubric.system)] if seen else [] for t, seen in rows]

    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """The expected digit of each row."""
        return scores_of([digit_score(row[0]) if row else None for row in answers])
