"""PromptEcho (2604.12652): how readily a frozen judge, asked to describe the picture, would say the prompt."""

from __future__ import annotations

import math

from visalign.rewards.base import RewardSpec
from visalign.rewards.judge import Answer, Judge, Question, Served
from visalign.rewards.judged import GENERAL, GENERAL_GB, Judged, scores_of
from visalign.rewards.rubrics import neutral
from visalign.types import Media, Prompts, Scores

QUERY = "Describe this image in detail."


def echo(answer: Answer) -> float | None:
    """The mean log-probability of the caption's tokens; None where the call failed or there was no token.

    Example:
        >>> echo(Answer(continuation=-1.5)), echo(Answer(error="timeout")), echo(Answer(continuation=math.nan))
        (-1.5, None, None)
    """
    value = answer.continuation
    return None if answer.error or value is None or not math.isfinite(value) else value


class PromptEcho(Judged):
    """Mean log-probability a token of the prompt as the answer to "describe this image", ≤ 0, in nats.

    The mean and not the sum, so that long prompts are not worse; it is made for long prompts, and compares pictures of
    one prompt: the value of an easy prompt is higher whatever the picture.

    Args:
        model: a vision-language model (folder or hub id), `shapes/vlm`, or a judge.
        server: base URL of an OpenAI-compatible server that serves the model, or a mapping with `url` and options of
            `ServerJudge`; None runs it here.
        query: what the judge is asked before it would say the prompt.

    Raises:
        InputError: the model cannot be loaded.
    """

    spec = RewardSpec(
        name="promptecho",
        inputs=("prompt",),
        range=(None, 0.0),
        weights=(GENERAL,),
        memory_gb=GENERAL_GB,
        paper="2604.12652",
        tiny="shapes/vlm",
    )

    def __init__(self, model: str | Judge = GENERAL.repo, server: Served = None, query: str = QUERY) -> None:
        super().__init__(model, server)
        self.query = query

    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """One question a row, its continuation is the prompt."""
        rows = zip(prompts.texts, media.images, strict=True)
        return [[Question(self.query, (image,), continuation=neutral(text))] for text, image in rows]

    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """The mean log-probability of each prompt."""
        return scores_of([echo(a) for (a,) in answers])
