"""VideoScore2 (2509.22799): a judge that thinks, then writes three scores from 1 to 5, read by their expectation."""

from __future__ import annotations

import re
from itertools import accumulate

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.judge import Answer, Judge, Question, Served
from visalign.rewards.judged import Judged, expected_digit, scores_of
from visalign.rewards.lifting import indices_at
from visalign.rewards.rubrics import DATA, QUOTED, Rubric, rubric_of
from visalign.types import Media, Prompts, Scores

PARTS = ("visual_quality", "text_alignment", "physical_consistency")
DIGITS = range(1, 6)
RUBRIC = Rubric(
    f"These pictures are the frames of a video, in order. It was made for this prompt:\n{QUOTED}"
    "Judge it in three ways. Think first, between <think> and </think>; then give each a whole number from 1 (bad) to "
    "5 (perfect), in this form:\n(1) visual quality: <number>\n(2) text-to-video alignment: <number>\n"
    "(3) physical/common-sense consistency: <number>",
    f"You are a strict judge of generated videos. {DATA}",
)

# The first digit after "(n)", before the next entry opens; "4K" and "3.5" are none.
_ENTRY = r"\({}\)(?:(?!\(\d\))\D)*([1-5])(?!\w|\.\d)"
_TRIPLE = re.compile(r"(?:(?!\(1\)).)*?".join(_ENTRY.format(n) for n in (1, 2, 3)), re.DOTALL)


def digit_places(text: str) -> list[int] | None:
    """Where the three digits of the last "(1) … (2) … (3) …" stand, after the thinking; None where there is none.

    Example:
        >>> digit_places("<think>(1) 2 (2) 2 (3) 2</think>(1) a: 4 (2) b: 5 (3) c: 3")
        [39, 48, 57]
    """
    end = text.rfind("</think>")
    if "<think>" in text and end < 0:
        return None
    found = list(_TRIPLE.finditer(text, max(end, 0)))
    return [found[-1].start(n) for n in (1, 2, 3)] if found else None


def soft_scores(answer: Answer) -> list[float] | None:
    """Σ s·p(s) / Σ p(s) at each of the three digits; None where one is missing, or differs by over 1 from the text.

    The published script takes the likeliest score times its probability, which is not monotone, and is not reproduced.
    """
    text = "".join(answer.tokens)
    places = None if answer.error else digit_places(text)
    if places is None:
        return None
    ends = list(accumulate(len(token) for token in answer.tokens))
    scores = []
    for place in places:
        token = next(i for i, end in enumerate(ends) if end > place)
        soft = expected_digit(answer.logprobs[token], DIGITS)
        if soft is None or abs(soft - int(text[place])) > 1:
            return None
        scores.append(soft)
    return scores


class VideoScore2(Judged):
    """Mean of (s - 1) / 4 over visual quality, text alignment and physical consistency, each a component, in [0, 1].

    Two frames a second go to the judge as pictures, while the weights saw them as one video: values differ from the
    published ones even with the published text as `template`.

    Args:
        model: a vision-language model (folder or hub id), `shapes/vlm`, or a judge.
        server: base URL of an OpenAI-compatible server that serves the model, or a mapping with `url` and options of
            `ServerJudge`; None runs it here.
        template: a text file with `{prompt}` in it; None is our own text.
        fps: judged frames a second.
        max_tokens: of thinking and scores; an answer that is cut off is invalid.

    Raises:
        InputError: the model or the template cannot be read.
    """

    spec = RewardSpec(
        name="videoscore2",
        media=("video",),
        inputs=("prompt",),
        range=(0.0, 1.0),
        weights=(Weights("TIGER-Lab/VideoScore2", "model.safetensors.index.json", "Apache-2.0"),),
        memory_gb=16.6,
        paper="2509.22799",
        tiny="shapes/vlm",
    )

    def __init__(
        self,
        model: str | Judge = "TIGER-Lab/VideoScore2",
        server: Served = None,
        template: str | None = None,
        fps: float = 2.0,
        max_tokens: int = 1024,
    ) -> None:
        self.rubric = rubric_of(template, RUBRIC)
        self.fps = fps
        self.max_tokens = max_tokens
        super().__init__(model, server)

    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """One question a row, with its frames.

        Raises:
            InputError: the media are images, or their frame rate is not known.
        """
        frames = media.pixels[:, indices_at(media.pixels.shape[1], media.fps, self.fps)]
        texts = [self.rubric.fill({"prompt": text}) for text in prompts.texts]
        return [
            [Question(text, tuple(row), self.rubric.system, self.max_tokens)]
            for row, text in zip(frames, texts, strict=True)
        ]

    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """Scores of each row; invalid where the answer does not hold three scores."""
        rows = [soft_scores(answer) for (answer,) in answers]
        parts = [None if row is None else [(s - 1) / 4 for s in row] for row in rows]
        columns = {name: [None if row is None else row[i] for row in parts] for i, name in enumerate(PARTS)}
        return scores_of([None if row is None else sum(row) / len(row) for row in parts], columns)
