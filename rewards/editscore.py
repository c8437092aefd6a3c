"""EditScore (2509.23909): how well an edit was carried out and how good it looks, each by its worst mark."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.judge import Answer, Judge, Question, Served
from visalign.rewards.judged import Judged, json_object, mean_of_known, numbers, scores_of, shown
from visalign.rewards.rubrics import DATA, EDITED_BY, QUOTED, Rubric, rubric_of
from visalign.types import InputError, Media, Prompts, Scores

TOP = 25
SYSTEM = f"You are a strict judge of edited pictures. {DATA}"
FORM = 'Answer with JSON alone: {"reasoning": "<why, in short>", "score": [<first mark>, <second mark>]}'
RUBRICS = {
    "semantic": Rubric(
        f"{EDITED_BY}Give two marks from 0 to {TOP}. First: was the instruction carried out? {TOP} is in full, 0 not "
        f"at all. Second: was all else left as it was? {TOP} is untouched, 0 another picture altogether. {FORM}",
        SYSTEM,
    ),
    "perceptual": Rubric(
        f"The picture was edited by this instruction:\n{QUOTED}Give two marks from 0 to {TOP}, whether or not it was "
        "carried out. First: does the picture look natural, in light, perspective, size and edges? Second: is it free "
        f"of flaws such as smears, seams, noise and broken shapes? {TOP} is without fault, 0 is ruined. {FORM}",
        SYSTEM,
    ),
}
SCHEMA = {
    "type": "object",
    "properties": {
        "reasoning": {"type": "string"},
        "score": {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "maximum": TOP},
            "minItems": 2,
            "maxItems": 2,
        },
    },
    "required": ["reasoning", "score"],
    "additionalProperties": False,
}
Pass = tuple[float | None, float | None]


def worst_mark(answer: Answer) -> float | None:
    """The smaller of the two marks on a scale of 0 … 10; None where the answer is not two marks of 0 … 25.

    Example:
        >>> worst_mark(Answer('{"reasoning": "", "score": [20, 15]}')), worst_mark(Answer("score: [25, 25]"))
        (6.0, None)
    """
    marks = numbers((json_object(answer.text) or {}).get("score"), 2, 0, TOP)
    return None if answer.error or marks is None else min(marks) * 10 / TOP


def overall(semantic: float | None, perceptual: float | None) -> float | None:
    """√(SC · PQ): nothing is gained by looks where the edit failed."""
    return None if semantic is None or perceptual is None else math.sqrt(semantic * perceptual)


def average_last(passes: Sequence[Pass]) -> float | None:
    """Mean over the passes of √(SC · PQ); a pass that failed is left out."""
    return mean_of_known([overall(*one) for one in passes])


def average_first(passes: Sequence[Pass]) -> float | None:
    """√(mean SC · mean PQ); a mark that failed is left out."""
    return overall(*(mean_of_known(marks) for marks in zip(*passes, strict=True))) if passes else None


AVERAGES: dict[str, Callable[[Sequence[Pass]], float | None]] = {"last": average_last, "first": average_first}


class EditScore(Judged):
    """√(SC · PQ) in [0, 10], averaged over passes; components `semantic` (SC) and `perceptual` (PQ), 0 … 10.

    SC is the worse of "carried out" and "nothing else changed"; PQ the worse of "natural" and "without flaws".

    Args:
        model: an EditScore (folder or hub id), any vision-language model, `shapes/vlm`, or a judge.
        server: base URL of an OpenAI-compatible server that serves the model, or a mapping with `url` and options of
            `ServerJudge`; None runs it here.
        source: the column of the picture that was edited.
        passes: judgements a row with different seeds, averaged; the paper takes 4 or 8. One pass is not sampled.
        average: `last` averages the scores, `first` the marks.
        seed: of the first pass.
        templates: for `semantic` or `perceptual`, a file with the rubric that the weights were trained with.

    Raises:
        InputError: a word or number is not one of those, or the model cannot be loaded; (in `score`) no such column.
    """

    spec = RewardSpec(
        name="editscore",
        inputs=("prompt", "source"),
        range=(0.0, 10.0),
        weights=(Weights("EditScore/EditScore-Qwen3-VL-8B-Instruct", "model.safetensors.index.json", "Apache-2.0"),),
        memory_gb=17.5,
        paper="2509.23909",
        tiny="shapes/vlm",
    )

    def __init__(
        self,
        model: str | Judge = "EditScore/EditScore-Qwen3-VL-8B-Instruct",
        server: Served = None,
        source: str = "source",
        passes: int = 1,
        average: Literal["last", "first"] = "last",
        seed: int = 0,
        templates: Mapping[str, str] | None = None,
    ) -> None:
        files = dict(templates or {})
        if passes < 1 or average not in AVERAGES or not set(files) <= set(RUBRICS):
            raise InputError(
                f"editscore came with passes {passes}, average {average!r} and templates for {sorted(files)}; write "
                f"passes: 1 or more, average: {' or '.join(AVERAGES)}, templates for {' and '.join(RUBRICS)}"
            )
        super().__init__(model, server)
        self.source, self.average = source, AVERAGES[average]
        self.seeds, self.temperature = range(seed, seed + passes), 0.7 if passes > 1 else 0.0
        self.rubrics = {name: rubric_of(files.get(name), own) for name, own in RUBRICS.items()}
        self.spec = replace(self.spec, inputs=("prompt", source))

    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """For each pass, what was done (source and edit are shown) and how it looks (the edit alone)."""
        rows = zip(prompts.texts, shown(media, prompts, self.source, self.spec.name), strict=True)
        return [[q for seed in self.seeds for q in self._ask(text, seen, seed)] if seen else [] for text, seen in rows]

    def _ask(self, prompt: str, seen: tuple[Tensor, ...], seed: int) -> list[Question]:
        views = zip(self.rubrics.values(), (seen, seen[-1:]), strict=True)
        return [
            Question(
                rubric.fill({"prompt": prompt}), view, rubric.system, 512, self.temperature, seed=seed, schema=SCHEMA
            )
            for rubric, view in views
        ]

    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """The score of each row."""
        marks = [[worst_mark(a) for a in row] for row in answers]
        parts = {name: [mean_of_known(row[i::2]) for row in marks] for i, name in enumerate(RUBRICS)}
        return scores_of([self.average(list(zip(row[::2], row[1::2], strict=True))) for row in marks], parts)
