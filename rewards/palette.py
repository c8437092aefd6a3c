"""A differentiable stand-in for the verifier on the shapes world: does each colour cover as much as the prompt says?

It sees colours and areas, not shapes, counts or places, so it can be satisfied by pictures that are wrong: a reward to
practise back-propagation and its hacking on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from visalign.rewards.base import Reward, RewardSpec
from visalign.shapes.render import PALETTE
from visalign.shapes.scenes import COLORS
from visalign.types import InputError, Media, Prompts, Scores

SHARPNESS = 40.0
"""Inverse squared distance in RGB at which a pixel stops counting as a colour."""
AREA = (0.062, 0.045, 0.037, 0.032)
"""Mean share of the picture that one object covers when 1, 2, 3 or 4 of them stand in it."""


def coverage(images: Tensor) -> Tensor:
    """Share of each image that each colour covers, softly, (B, colours); the ground takes the rest.

    Args:
        images: (B, 3, H, W) in [0, 1].
    """
    palette = PALETTE.to(images)
    distance = (images.unsqueeze(1) - palette.view(1, -1, 3, 1, 1)).square().sum(2)  # (B, colours, H, W)
    ground = (images - images.amax(1, keepdim=True)).square().sum(1, keepdim=True)  # 0 for greys
    logits = -SHARPNESS * torch.cat([distance, ground + (1 - images.amax(1, keepdim=True)).square()], 1)
    return logits.softmax(1)[:, :-1].mean((2, 3))


def expected_coverage(row: Mapping[str, Any]) -> list[float | None]:
    """The coverage of each colour that a prompt's metadata asks for; None where it leaves the colour open.

    Example:
        >>> expected_coverage({"include": [{"class": "star", "count": 2, "color": COLORS[1]}]})[:3]
        [0.0, 0.09, 0.0]
    """
    total = min(sum(clause["count"] for clause in row["include"]), len(AREA))
    wanted = dict.fromkeys(COLORS, 0.0)
    for clause in row["include"]:
        if "color" in clause:
            wanted[clause["color"]] += clause["count"] * AREA[total - 1]
    free = any("color" not in clause for clause in row["include"])
    return [None if free and value == 0 else value for value in wanted.values()]


class Palette(Reward):
    """1 − Σ|coverage − expected| / expected total, over the colours that the prompt settles.

    Raises:
        InputError: (in `score`) a prompt has no GenEval fields.
    """

    spec = RewardSpec(name="palette", inputs=("prompt", "include"), differentiable=True, range=(None, 1.0))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B first frames."""
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        found = coverage(media.images.float())
        for text, row in zip(prompts.texts, prompts.columns, strict=True):
            if "include" not in row:
                raise InputError(f"palette needs GenEval's column include, but prompt {text!r} has {sorted(row)}")
        wanted = [expected_coverage(row) for row in prompts.columns]
        values = []
        for row, goal in zip(found, wanted, strict=True):
            settled = [i for i, v in enumerate(goal) if v is not None]
            goals = torch.tensor([goal[i] or 0.0 for i in settled], device=row.device)
            values.append(1 - (row[settled] - goals).abs().sum() / max(float(goals.sum()), AREA[0]))
        scores = torch.stack(values)
        valid = torch.tensor([any(v for v in goal if v) for goal in wanted], device=scores.device)
        return Scores(scores, valid=valid)
