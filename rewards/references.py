"""Pictures that come with a prompt: references, sources, subjects; from columns of the prompt's row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from visalign.rewards.preprocess import resize
from visalign.types import InputError, Media, Prompts, Scores

Compare = Callable[[Tensor, Tensor], Tensor]
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def references(prompts: Prompts, column: str, reward: str) -> list[tuple[Tensor, ...]]:
    """The pictures in a column, for each row; empty where no file can be read, so that the row is invalid.

    A column holds a path, a tensor (3, H, W) in [0, 1], or a list of these. `source` falls back to the prompt's
    conditioning image. A file that several rows name is read once, and they share one tensor.

    Args:
        prompts: the rows.
        column: for example `reference` or `source`.
        reward: who asks, for the message.

    Raises:
        InputError: a row does not have the column.
    """
    rows = [_items(prompts, row, column, reward) for row in range(len(prompts))]
    pictures = {item: _picture(item) for row in rows for item in row}
    return [tuple(p for item in row if (p := pictures[item]) is not None) for row in rows]


def closest(media: Media, prompts: Prompts, column: str, reward: str, compare: Compare) -> Scores:
    """The best comparison of each first frame with the references of its row; rows without any are invalid.

    References of another size are resized to the frame's. Rows are compared one by one, so a batch changes nothing.

    Args:
        media: what is judged.
        prompts: the rows with the column.
        column: where the references are.
        reward: who asks, for the message.
        compare: images (R, 3, H, W) and as many references → (R,), greater is better.

    Raises:
        InputError: a row does not have the column.
    """
    pools = references(prompts, column, reward)
    values = [_best(image.float(), pool, compare) for image, pool in zip(media.images, pools, strict=True)]
    return Scores(torch.stack(values), valid=torch.tensor([bool(pool) for pool in pools]))


def _best(image: Tensor, pool: tuple[Tensor, ...], compare: Compare) -> Tensor:
    if not pool:
        return 0 * image.sum()  # keeps the batch's gradient defined
    height, width = image.shape[-2:]
    stack = torch.cat([resize(p.to(image)[None], height, width) for p in pool])  # (R, 3, H, W)
    return compare(image.expand_as(stack), stack).amax()


def _items(prompts: Prompts, row: int, column: str, reward: str) -> Sequence[Any]:
    columns = prompts.columns[row]
    if column in columns:
        held = columns[column]
        return held if isinstance(held, list | tuple) else [held]
    if column == "source" and prompts.images:
        return [prompts.images[row]]
    raise InputError(
        f"reward {reward!r} needs the column {column!r} (a path, or a list of paths), but the prompt "
        f"{prompts.texts[row]!r} has {', '.join(columns) or 'none'}"
    )


def _picture(item: str | Path | Tensor) -> Tensor | None:
    if isinstance(item, Tensor):
        return item.float()
    try:
        with Image.open(item) as image:
            pixels = torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB")))
    except _UNREADABLE:
        return None
    return pixels.permute(2, 0, 1).float() / 255
