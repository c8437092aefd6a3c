"""PaCo-Reward (PaCo-RL): how probable a judge finds it that pictures of one set agree, by pairs and by criteria."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations, product

from torch import Tensor

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.judge import Answer, Judge, Question, Served
from visalign.rewards.judged import Judged, choice, mean_of_all, scores_of
from visalign.rewards.references import references
from visalign.rewards.rubrics import DATA, QUOTED, Rubric
from visalign.types import InputError, Media, Prompts, Scores

CRITERIA = {
    "style": "made in one style: technique, palette, light and amount of detail",
    "identity": "showing the same persons, animals and things: face, build, clothes, shape and colour",
    "logic": "in accord: nothing that one of them shows is contradicted by the other",
}
PAIR = Rubric(
    f"The two pictures belong to one set, made for this prompt:\n{QUOTED}"
    "Are the two pictures consistent, which here means {criterion}? Answer Yes or No.",
    f"You are a strict judge of sets of generated pictures. {DATA}",
)


def pieces(image: Tensor, rows: int, columns: int) -> tuple[Tensor, ...]:
    """The sub-images of a sheet (3, H, W), row by row; sides that do not divide give the first ones a pixel more.

    Example:
        >>> import torch
        >>> [tuple(p.shape) for p in pieces(torch.zeros(3, 4, 5), 1, 2)]
        [(3, 4, 3), (3, 4, 2)]
    """
    return tuple(part for row in image.tensor_split(rows, -2) for part in row.tensor_split(columns, -1))


class Consistency(Judged):
    """Mean P(yes) in [0, 1] over pairs, both orders and criteria; each criterion is a component.

    Pairs are a picture (or each sub-image of it) with each of its references, or all pairs of its sub-images. A set
    that shows the same thing again and again is consistent: use it beside a reward that reads the prompt.

    Args:
        model: a vision-language model (folder or hub id), `shapes/vlm`, or a judge.
        server: base URL of an OpenAI-compatible server that serves the model, or a mapping with `url` and options of
            `ServerJudge`; None runs it here.
        reference: the column that names pictures of the same set; None compares sub-images with one another.
        grid: rows and columns of the sheet that a picture is; (1, 1) is a single picture.
        criteria: name → what consistent means, in a clause; None takes style, identity and logic.

    Raises:
        InputError: there is nothing to compare, or the model cannot be loaded; (in `score`) a prompt lacks the column.
    """

    spec = RewardSpec(
        name="consistency",
        inputs=("prompt",),
        range=(0.0, 1.0),
        weights=(Weights("X-GenGroup/PaCo-Reward-7B", "model.safetensors.index.json", "none stated"),),
        memory_gb=16.6,
        paper="PaCo-RL: Advancing Reinforcement Learning for Consistent Image Generation with Pairwise Reward Modeling",
        tiny="shapes/vlm",
    )

    def __init__(
        self,
        model: str | Judge = "X-GenGroup/PaCo-Reward-7B",
        server: Served = None,
        reference: str | None = "reference",
        grid: Sequence[int] = (1, 1),
        criteria: Mapping[str, str] | None = None,
    ) -> None:
        if len(grid) != 2 or min(grid) < 1 or (reference is None and max(grid) == 1):
            raise InputError(
                f"consistency came with grid {list(grid)} and reference {reference!r}, which gives no pairs; write "
                f"grid: [2, 2] for a sheet of 2 rows and 2 columns, or reference: and the name of a column"
            )
        super().__init__(model, server)
        self.reference, (self.rows, self.columns) = reference, grid
        self.criteria = dict(criteria or CRITERIA)
        if reference is not None:
            self.spec = replace(self.spec, inputs=("prompt", reference))

    def questions(self, media: Media, prompts: Prompts) -> list[list[Question]]:
        """For each row, criterion by criterion, each pair in both orders; none where a reference cannot be read."""
        sheets = [pieces(image, self.rows, self.columns) for image in media.images]
        if self.reference is None:
            pairs = [list(combinations(sheet, 2)) for sheet in sheets]
        else:
            pools = references(prompts, self.reference, self.spec.name)
            pairs = [list(product(pool, sheet)) for pool, sheet in zip(pools, sheets, strict=True)]
        return [self._ask(text, of_row) for text, of_row in zip(prompts.texts, pairs, strict=True)]

    def _ask(self, prompt: str, pairs: Sequence[tuple[Tensor, ...]]) -> list[Question]:
        texts = [PAIR.fill({"prompt": prompt, "criterion": meaning}) for meaning in self.criteria.values()]
        return [Question(t, order, PAIR.system) for t in texts for pair in pairs for order in permutations(pair)]

    def read(self, answers: list[list[Answer]], prompts: Prompts) -> Scores:
        """The mean yes probability of each row."""
        yes = [[choice(a, "yes", "no") for a in row] for row in answers]
        each = [len(row) // len(self.criteria) for row in yes]
        parts = {
            name: [mean_of_all(row[i * n : (i + 1) * n]) for row, n in zip(yes, each, strict=True)]
            for i, name in enumerate(self.criteria)
        }
        return scores_of([mean_of_all(row) for row in yes], parts)
