"""VQAScore (2404.01291): the probability that a judge answers yes to whether the picture shows the prompt."""

from __future__ import annotations

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.judge import Answer, Judge, Question, Served
from visalign.rewards.judged import Judged, choice, scores_of
from visalign.rewards.rubrics import neutral
from visalign.types import Media, Prompts, Scores

QUESTION = 'Does this figure show "{prompt}"? Please answer Yes or No.'


class VQAScore(Judged):
    """P(Yes) / (P(Yes) + P(No)) at the first token, in [0, 1].

    Args:
        model: a vision-language model (folder or hub id), or `shapes/vlm`.
        server: base URL of an OpenAI-compatible server that serves the model, or a mapping with `url` and options of
            `ServerJudge`; None runs it here.

    Example:
        >>> import torch
        >>> from visalign.types import Media, Prompts
        >>> noise = Media.of_images(torch.rand(2, 3, 64, 64))
        >>> bool((VQAScore("shapes/vlm").score(noise, Prompts(("a red star", "two circles"))).values < 0.5).all())
        True
    """

    spec = RewardSpec(
        name="vqascore",
        inputs=("prompt",),
        range=(0.0, 1.0),
        weights=(Weights("Qwen/Qwen3-VL-8B-Instruct", "model.safetensors.index.json", "Apache-2.0"),),
        memory_gb=17.5,
        paper="2404.01291",
        tiny="shapes/vlm",
    )

    def __init__(self, model: str | Judge = "Qwen/Qwen3-VL-8B-Instruct", server: Served = None) -> None:
        super().__init__(model, server)

    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """One question a row."""
        return [
            [Question(QUESTION.format(prompt=neutral(text)), (image,))]
            for image, text in zip(media.images, prompts.texts, strict=True)
        ]

    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """The yes probability of each row."""
        return scores_of([choice(a, "yes", "no") for (a,) in answers])
