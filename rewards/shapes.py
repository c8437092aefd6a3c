"""The built-in world's own reward: does the picture show what the prompt says?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from visalign.rewards.base import Reward, RewardSpec
from visalign.shapes.scenes import CATEGORIES
from visalign.shapes.verifier import verify
from visalign.types import InputError, Media, Prompts, Scores

FIELDS = ("tag", "include")


class ShapesReward(Reward):
    """GenEval on the shapes world: the verifier reads the (first) frame back into objects and checks the prompt.

    The value is (1 − graded) · strict + graded · graded credit, in [0, 1]; both parts are components.

    Args:
        graded: share of the partial credit in [0, 1]; 0 rewards only pictures that are right in all.
        category: judge only prompts of this GenEval category; rows of others are invalid. None judges all.

    Raises:
        InputError: `graded` is out of range, the category is unknown, or (in `score`) a prompt has no GenEval fields.

    Example:
        >>> row = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "exclude": []}
        >>> blank = Media(torch.ones(1, 1, 3, 64, 64))
        >>> ShapesReward(graded=0.0).score(blank, Prompts(("a circle",), (row,))).values
        tensor([0.])
    """

    spec = RewardSpec(name="shapes", media=("image", "video"), inputs=("prompt", *FIELDS), range=(0.0, 1.0))

    def __init__(self, graded: float = 0.5, category: str | None = None) -> None:
        if not 0 <= graded <= 1:
            raise InputError(f"shapes takes graded in [0, 1], but {graded} came; write for example graded: 0.5")
        if category not in (None, *CATEGORIES):
            raise InputError(f"shapes has no category {category!r}; write one of {', '.join(CATEGORIES)}")
        self.graded = graded
        self.category = category

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B first frames; components `strict` (0 or 1) and `graded`, (B,) each."""
        rows = [_metadata(text, row) for text, row in zip(prompts.texts, prompts.columns, strict=True)]
        verdict = verify(media.images, rows)
        strict, graded = verdict.strict.float(), verdict.graded.float()
        values = (1 - self.graded) * strict + self.graded * graded
        return Scores(values, {"strict": strict, "graded": graded}, _of_category(rows, self.category))


def _of_category(rows: Sequence[Mapping[str, Any]], category: str | None) -> torch.Tensor:
    return torch.tensor([category in (None, row["tag"]) for row in rows], dtype=torch.bool)


def _metadata(text: str, row: Mapping[str, Any]) -> dict[str, Any]:
    missing = [f for f in FIELDS if f not in row]
    if missing:
        raise InputError(
            f"reward 'shapes' needs the columns {' and '.join(FIELDS)} (GenEval's fields), but the prompt {text!r} has "
            f"{', '.join(row) or 'none'}; use prompts of shapes/train or shapes/held_out, or a jsonl file with them"
        )
    return {"exclude": [], **row}
