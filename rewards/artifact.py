"""ArtifactReward (2601.03468): the probability that a judge sees no unintended flaw. A guard beside other rewards.

The paper tunes the question on labelled pictures and leaves the weights alone; give such a question as `question`.
"""

from __future__ import annotations

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.judge import Answer, Judge, Question, Served
from visalign.rewards.judged import Judged, choice, scores_of
from visalign.types import Media, Prompts, Scores

QUESTION = (
    "Look for flaws that nobody intended: broken or extra body parts, melted or merged things, shadows and light that "
    "disagree, objects that float or do not fit together, seams, noise, smeared or repeated texture. A style that was "
    "chosen on purpose, such as a drawing, a blur or odd colours, is no flaw. Does the picture have such a flaw? "
    "Answer Yes or No."
)


def flawless(answer: Answer) -> float | None:
    """1 − P(yes); None where the judge gave no verdict.

    Example:
        >>> from math import log
        >>> flawless(Answer("No", logprobs=({"Yes": log(0.25), "No": log(0.75)},))), flawless(Answer("", error="down"))
        (0.75, None)
    """
    yes = choice(answer, "yes", "no")
    return None if yes is None else 1 - yes


class Artifact(Judged):
    """1 − P(yes) to whether the picture has unintended flaws, in [0, 1]; it reads no prompt.

    It saturates near 1: give it a scale of its own (`aggregation: group_z`) rather than a plain sum.

    Args:
        model: a vision-language model (folder or hub id), `shapes/vlm`, or a judge.
        server: base URL of an OpenAI-compatible server that serves the model, or a mapping with `url` and options of
            `ServerJudge`; None runs it here.
        question: what is asked; yes must mean a flaw.

    Raises:
        InputError: the model cannot be loaded.
    """

    spec = RewardSpec(
        name="artifact",
        range=(0.0, 1.0),
        weights=(Weights("Qwen/Qwen2.5-VL-7B-Instruct", "model.safetensors.index.json", "Apache-2.0"),),
        memory_gb=16.6,
        paper="2601.03468",
        tiny="shapes/vlm",
    )

    def __init__(
        self,
        model: str | Judge = "Qwen/Qwen2.5-VL-7B-Instruct",
        server: Served = None,
        question: str = QUESTION,
    ) -> None:
        super().__init__(model, server)
        self.question = question

    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """One question a row."""
        return [[Question(self.question, (image,))] for image in media.images]

    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """The probability of no flaw in each row."""
        return scores_of([flawless(a) for (a,) in answers])
