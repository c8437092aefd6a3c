"""RationalRewards (2604.11626): a written critique with a mark for each aspect, and a better request at its end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.judge import Answer, Judge, Question, Served
from visalign.rewards.judged import Judged, mean_of_known, scores_of, shown
from visalign.rewards.rubrics import critique_rubric, rubric_of
from visalign.types import Media, Prompts, Scores

EDIT = {
    "Text Faithfulness": "it shows what the request asks for, no less and no more",
    "Image Faithfulness": "what the request does not mention is as it was in the source",
    "Physical and Visual Quality": "light, anatomy, perspective and physics hold, and nothing is smeared or broken",
    "Text Rendering": "writing in the picture is legible and spelled as asked; N/A where there should be none",
}
PICTURE = {aspect: meaning for aspect, meaning in EDIT.items() if aspect != "Image Faithfulness"}
OPTIONAL = "Text Rendering"
_TEXT = r"((?:(?!\n[ \t]*#).)*?)"
_MARK = r"([0-9]+(?:\.[0-9]+)?|N/A)"


@dataclass(frozen=True)
class Critique:
    """What the judge wrote.

    Attributes:
        analysis: how it understood the request.
        marks: aspect → mark, clamped to 1 … 4; None where it does not apply.
        reasons: aspect → why.
        summary: the whole in short.
        comments: what the request lacks.
        refined: a better request, ready to be generated from.
    """

    analysis: str
    marks: Mapping[str, float | None]
    reasons: Mapping[str, str]
    summary: str
    comments: str
    refined: str


def parse_critique(text: str, aspects: Iterable[str] = PICTURE) -> Critique | None:
    """The critique that a text is, section by section; None where it is not in that form.

    A mark counts only in its place: a `Score:` in a justification is none. Only text rendering may be N/A.
    """
    names = list(aspects)
    block = r"\s*{}\. {}:?\s*\n## Justification:" + _TEXT + r"\s*\n## Score:[ \t]*" + _MARK + r"[ \t]*\n"
    match = re.fullmatch(
        rf"\s*# User Request Analysis:?{_TEXT}\n# Detailed Judgement:?"
        + "".join(block.format(i, re.escape(name)) for i, name in enumerate(names, 1))
        + rf"\s*# Summary:?{_TEXT}\n# User Request Refinement:?"
        + rf"\s*## Refinement Comments:{_TEXT}\n## Refined Request:{_TEXT}\s*",
        text,
        re.DOTALL,
    )
    if match is None:
        return None
    analysis, *judged, summary, comments, refined = (part.strip() for part in match.groups())
    written = dict(zip(names, judged[1::2], strict=True))
    marks = {name: None if mark == "N/A" else min(max(float(mark), 1.0), 4.0) for name, mark in written.items()}
    if any(mark is None and name != OPTIONAL for name, mark in marks.items()):
        return None
    return Critique(analysis, marks, dict(zip(names, judged[::2], strict=True)), summary, comments, refined)


def share(critique: Critique | None) -> float | None:
    """(Mean mark of the aspects that apply − 1) / 3, in [0, 1].

    Example:
        >>> share(Critique("", {"Text Faithfulness": 4.0, "Text Rendering": None}, {}, "", "", "")), share(None)
        (1.0, None)
    """
    mean = None if critique is None else mean_of_known(list(critique.marks.values()))
    return None if mean is None else (mean - 1) / 3


class RationalRewards(Judged):
    """(Mean mark − 1) / 3 in [0, 1]; each aspect's mark, 1 … 4, is a component (NaN where it does not apply).

    `critiques(...)` gives the whole critiques, with the refined prompts.

    Args:
        model: RationalRewards (folder or hub id), any vision-language model, `shapes/vlm`, or a judge.
        server: base URL of an OpenAI-compatible server that serves the model, or a mapping with `url` and options of
            `ServerJudge`; None runs it here.
        source: for edits, the column of the picture that was edited; None judges pictures made from the prompt alone.
        template: a file with the rubric that the weights were trained with, `{prompt}` in it; None takes ours.

    Raises:
        InputError: the model or the template cannot be loaded; (in `score`) a prompt lacks the column.
    """

    spec = RewardSpec(
        name="rationalrewards",
        inputs=("prompt",),
        range=(0.0, 1.0),
        weights=(
            Weights("TIGER-Lab/RationalRewards-8B-T2I", "model.safetensors.index.json", "none stated"),
            Weights("TIGER-Lab/RationalRewards-8B-Edit", "model.safetensors.index.json", "Apache-2.0"),
        ),
        memory_gb=17.5,
        paper="2604.11626",
        tiny="shapes/vlm",
    )

    def __init__(
        self,
        model: str | Judge = "TIGER-Lab/RationalRewards-8B-T2I",
        server: Served = None,
        source: str | None = None,
        template: str | None = None,
    ) -> None:
        super().__init__(model, server)
        self.source = source
        self.aspects = PICTURE if source is None else EDIT
        self.rubric = rubric_of(template, critique_rubric(self.aspects))
        if source is not None:
            self.spec = replace(self.spec, inputs=("prompt", source))

    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """One question a row; none where the source cannot be read."""
        rows = zip(prompts.texts, shown(media, prompts, self.source, self.spec.name), strict=True)
        return [[self._ask(text, seen)] if seen else [] for text, seen in rows]

    def _ask(self, prompt: str, seen: tuple[Tensor, ...]) -> Question:
        return Question(self.rubric.fill({"prompt": prompt}), seen, self.rubric.system, 2048, temperature=0.1)

    def _parse(self, row: list[Answer]) -> Critique | None:
        return parse_critique(row[0].text, self.aspects) if row and not row[0].error else None

    def critiques(self, media: Media, prompts: Prompts) -> list[Critique | None]:
        """The critique of each row, `refined` among its parts; None where there is none."""
        return [self._parse(row) for row in self.answers(media, prompts)]

    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """The marks of each row."""
        found = [self._parse(row) for row in answers]
        parts = {a.lower().replace(" ", "_"): [c.marks[a] if c else None for c in found] for a in self.aspects}
        return scores_of([share(c) for c in found], parts)
