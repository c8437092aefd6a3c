"""UnifiedReward (2503.05236): a picture's marks from 1 to 5 as the judge writes them down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.judge import Answer, Judge, Question, Served
from visalign.rewards.judged import Judged, labelled, mean_of_all, scores_of, thought
from visalign.rewards.rubrics import DATA, MADE_FOR, Rubric, rubric_of
from visalign.types import InputError, Media, Prompts, Scores

SYSTEM = f"You are a strict judge of generated pictures. {DATA}"
FINAL = Rubric(
    MADE_FOR + "Judge how well it shows what the prompt asks for, and its quality. 1 is the worst mark, 5 the best, "
    "decimals are welcome. Write your mark on the last line, in this form and with nothing after it:\n"
    "Final Score: <number>",
    SYSTEM,
)
AXES = Rubric(
    MADE_FOR + "Give three marks from 1 (worst) to 5 (best), decimals are welcome. Alignment: does it show what the "
    "prompt asks for? Coherence: is it free of broken shapes and contradictions? Style: is it good to look at, "
    "whatever the prompt says? Write each mark on a line of its own, in this form:\n"
    "Alignment Score (1-5): <number>\nCoherence Score (1-5): <number>\nStyle Score (1-5): <number>",
    SYSTEM,
)
THINK = Rubric(
    MADE_FOR
    + "Judge how well it shows what the prompt asks for, and its quality. Reason between <think> and </think>. "
    "Then give your mark from 1 (worst) to 5 (best), decimals are welcome, in this form:\n"
    "<answer>Final Score: <number></answer>",
    SYSTEM,
)
Marks = tuple[float | None, ...]


def mark(text: str, label: str) -> float | None:
    """A labelled mark within 1 … 5; None where there is none, or one out of range.

    Example:
        >>> mark("Final Score: 4.5", "Final Score"), mark("Final Score: 9", "Final Score")
        (4.5, None)
    """
    value = labelled(text, label)
    return value if value is not None and 1 <= value <= 5 else None


def final_mark(text: str) -> Marks:
    """The mark of the first generation of models: one line `Final Score: …`."""
    return (mark(text, "Final Score"),)


def axis_marks(text: str) -> Marks:
    """The marks of 2.0: alignment, coherence and style, a line each."""
    return tuple(mark(text, f"{axis} Score (1-5)") for axis in ("Alignment", "Coherence", "Style"))


def thought_mark(text: str) -> Marks:
    """The mark inside `<answer>`, after the thoughts; a mark among the thoughts does not count."""
    return final_mark(thought(text) or "")


def unit(mean: float | None) -> float | None:
    """A mark of 1 … 5 as a share, (mark − 1) / 4: unlike mark / 5, the worst is worth nothing.

    Example:
        >>> unit(1.0), unit(4.0), unit(None)
        (0.0, 0.75, None)
    """
    return None if mean is None else (mean - 1) / 4


@dataclass(frozen=True)
class Form:
    """What one generation of models is asked, how long it may answer, and how its marks are read."""

    rubric: Rubric
    max_tokens: int
    parts: tuple[str, ...]
    read: Callable[[str], Marks]


FORMS = {
    "1.0": Form(FINAL, 512, ("final",), final_mark),
    "2.0": Form(AXES, 512, ("alignment", "coherence", "style"), axis_marks),
    "think": Form(THINK, 4096, ("final",), thought_mark),
}


class UnifiedReward(Judged):
    """(Mean mark − 1) / 4 in [0, 1]; the marks, 1 … 5, are the components.

    Args:
        model: a UnifiedReward (folder or hub id), any vision-language model, `shapes/vlm`, or a judge.
        server: base URL of an OpenAI-compatible server that serves the model, or a mapping with `url` and options of
            `ServerJudge`; None runs it here.
        form: `1.0` (one final mark), `2.0` (alignment, coherence, style) or `think` (reasons, then a final mark).
        template: a file with the rubric that the weights were trained with, `{prompt}` in it; None takes ours.

    Raises:
        InputError: the form is unknown, or the model or the template cannot be loaded.
    """

    spec = RewardSpec(
        name="unifiedreward",
        inputs=("prompt",),
        range=(0.0, 1.0),
        weights=(
            Weights("CodeGoat24/UnifiedReward-2.0-qwen-7b", "model.safetensors.index.json", "MIT"),
            Weights("CodeGoat24/UnifiedReward-qwen-7b", "model.safetensors.index.json", "MIT"),
            Weights("CodeGoat24/UnifiedReward-Think-qwen-7b", "model.safetensors.index.json", "MIT"),
        ),
        memory_gb=16.6,
        paper="2503.05236",
        tiny="shapes/vlm",
    )

    def __init__(
        self,
        model: str | Judge = "CodeGoat24/UnifiedReward-2.0-qwen-7b",
        server: Served = None,
        form: Literal["1.0", "2.0", "think"] = "2.0",
        template: str | None = None,
    ) -> None:
        if form not in FORMS:
            raise InputError(f"unifiedreward has no form {form!r}; write one of {', '.join(FORMS)}, in quotation marks")
        super().__init__(model, server)
        self.form = FORMS[form]
        self.rubric = rubric_of(template, self.form.rubric)

    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """One question a row."""
        rows = zip(prompts.texts, media.images, strict=True)
        rubric, tokens = self.rubric, self.form.max_tokens
        return [[Question(rubric.fill({"prompt": t}), (image,), rubric.system, tokens)] for t, image in rows]

    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """The marks of each row; a row that lacks one is invalid."""
        marks = [self.form.read("" if a.error else a.text) for (a,) in answers]
        parts = {part: [row[i] for row in marks] for i, part in enumerate(self.form.parts)}
        return scores_of([unit(mean_of_all(row)) for row in marks], parts)
