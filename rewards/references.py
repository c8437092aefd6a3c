"""Pictures that come with a prompt: references, sources, subjects; from columns of the prompt's row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from visalign.types import InputError, Prompts


def references(prompts: Prompts, column: str, reward: str) -> list[tuple[Tensor, ...]]:
    """The pictures in a column, for each row; empty where a file cannot be read, so that the row is invalid.

    A column holds a path, a tensor (3, H, W) in [0, 1], or a list of these. `source` falls back to the prompt's
    conditioning image.

    Args:
        prompts: the rows.
        column: for example `reference` or `source`.
        reward: who asks, for the message.

    Raises:
        InputError: a row does not have the column.
    """
    return [_of_row(prompts, row, column, reward) for row in range(len(prompts))]


def _of_row(prompts: Prompts, row: int, column: str, reward: str) -> tuple[Tensor, ...]:
    columns = prompts.columns[row]
    if column in columns:
        held = columns[column]
        items: Sequence[Any] = held if isinstance(held, list | tuple) else [held]
        pictures = [_picture(item) for item in items]
        return tuple(p for p in pictures if p is not None)
    if column == "source" and prompts.images:
        return (prompts.images[row],)
    raise InputError(
        f"reward {reward!r} needs the column {column!r} (a path, or a list of paths), but the prompt "
        f"{prompts.texts[row]!r} has {', '.join(columns) or 'none'}"
    )


def _picture(item: str | Path | Tensor) -> Tensor | None:
    if isinstance(item, Tensor):
        return item.float()
    try:
        with Image.open(item) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
    except (OSError, UnidentifiedImageError):
        return None
    return pixels.permute(2, 0, 1).float() / 255
