"""Given media: captioned images and videos, and preference pairs. Texts are read at once, pixels when asked for.

Files are named relative to the list that names them, and only files below it are read. Images and frames are scaled to
cover the asked size and cropped in the middle.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from visalign.media_io import IMAGES, VIDEOS
from visalign.prompts import Row, check_file, pick_column, read_rows, read_text, to_prompts
from visalign.types import InputError, Media

LISTS = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
MEDIA_COLUMNS = ("file_name", "image", "video")
MAX_PIXELS = 64_000_000
"""A picture with more pixels is refused before it is decoded."""

Medium = Path | bytes
Size = tuple[int, int]
Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Captioned:
    """Media with a text each.

    Attributes:
        texts: the captions.
        columns: one mapping a caption with all else its row held.
        media: a file, or an encoded image, for each caption.
    """

    texts: tuple[str, ...]
    columns: tuple[Columns, ...]
    media: tuple[Medium, ...]

    def __len__(self) -> int:
        return len(self.media)

    def load(self, rows: Sequence[int], size: Size, frames: int = 1) -> Media:
        """Decode the chosen rows.

        Args:
            rows: which, in that order.
            size: height and width in pixels.
            frames: the first so many frames of each video; images have 1.

        Raises:
            InputError: a file cannot be decoded, is too large or too short; the message names it.
        """
        return load_media([self.media[row] for row in rows], size, frames)


@dataclass(frozen=True)
class Pairs:
    """Preference pairs.

    Attributes:
        texts: the prompts.
        columns: one mapping a pair with all else its row held.
        chosen: the better medium of each pair, a file or an encoded image.
        rejected: the worse one.
    """

    texts: tuple[str, ...]
    columns: tuple[Columns, ...]
    chosen: tuple[Medium, ...]
    rejected: tuple[Medium, ...]

    def __len__(self) -> int:
        return len(self.chosen)

    def load(self, rows: Sequence[int], chosen: Sequence[bool], size: Size, frames: int = 1) -> Media:
        """Decode one side of each of some pairs, as `Captioned.load` does; `chosen` says which side of each."""
        sides = [(self.chosen if better else self.rejected)[row] for row, better in zip(rows, chosen, strict=True)]
        return load_media(sides, size, frames)


def read_captioned(source: str | Path) -> Captioned:
    """Media with captions.

    Args:
        source: a folder with `metadata.jsonl|csv|parquet` (imagefolder), a folder where each medium has a .txt file of
            the same stem, or a .jsonl, .csv or .parquet file. Lists have a column `file_name`, `image` or `video` and
            one of `prompt`, `text` or `caption`.

    Raises:
        InputError: a file or column is missing, there are no media, or a caption is missing or empty.
    """
    path = Path(source)
    if not path.is_dir():
        return _read_list(path)
    lists = [path / name for name in LISTS if (path / name).is_file()]
    return _read_list(lists[0]) if lists else _read_folder(path)


def _read_list(path: Path) -> Captioned:
    check_file(path)
    rows = read_rows(path)
    prompts = to_prompts(rows, str(path))
    column = pick_column(rows, MEDIA_COLUMNS, str(path))
    return Captioned(prompts.texts, _without(prompts.columns, column), _locate_all(rows, column, path))


def _read_folder(folder: Path) -> Captioned:
    files = tuple(sorted(p for p in folder.rglob("*") if p.suffix.lower() in (*IMAGES, *VIDEOS)))
    if not files:
        raise InputError(f"{str(folder)!r} holds no media; give a folder with {', '.join((*IMAGES, *VIDEOS))} files")
    return Captioned(tuple(_caption(file) for file in files), tuple({} for _ in files), files)


def _caption(file: Path) -> str:
    beside = file.with_suffix(".txt")
    if not beside.is_file():
        raise InputError(f"{str(file)!r} has no caption; write it into {beside.name!r} beside it, or add {LISTS[0]}")
    text = read_text(beside).strip()
    if not text:
        raise InputError(f"{str(beside)!r} is empty; write the caption of {file.name!r} into it")
    return text


def read_pairs(source: str | Path) -> Pairs:
    """Preference pairs from a .jsonl, .csv or .parquet file.

    Args:
        source: a list with `prompt` (or `text`, `caption`), `chosen` and `rejected`; or with Pick-a-Pic's `caption`,
            `jpg_0`, `jpg_1` and `label_0` (1: the first is better, 0: the second, 0.5: a tie, which is dropped). Media
            are file names or encoded images.

    Raises:
        InputError: a file or column is missing, a label is another, or all rows are ties.
    """
    path = Path(source)
    rows = read_rows(path)
    if rows and "jpg_0" in rows[0]:
        rows = [_ranked(row, number, path) for number, row in enumerate(rows, 1) if not _is_tie(row)]
        if not rows:
            raise InputError(
                f"{str(path)!r} holds only ties (label_0 is 0.5 in every row); give pairs with a better one"
            )
    prompts = to_prompts(rows, str(path))
    chosen, rejected = (pick_column(rows, [name], str(path)) for name in ("chosen", "rejected"))
    columns = _without(prompts.columns, chosen, rejected)
    return Pairs(prompts.texts, columns, _locate_all(rows, chosen, path), _locate_all(rows, rejected, path))


def _is_tie(row: Row) -> bool:
    return str(row.get("label_0")) == "0.5"


def _ranked(row: Row, number: int, path: Path) -> Row:
    """A Pick-a-Pic row as a row with `chosen` and `rejected`."""
    order = {"1": ("jpg_0", "jpg_1"), "0": ("jpg_1", "jpg_0")}
    label = str(row.get("label_0")).removesuffix(".0")
    if label not in order:
        raise InputError(
            f"{str(path)!r}, row {number}: label_0 is {row.get('label_0')!r}; write 1, 0, or 0.5 for a tie"
        )
    chosen, rejected = (row.get(name) for name in order[label])
    rest = {k: v for k, v in row.items() if k not in ("jpg_0", "jpg_1", "label_0", "label_1")}
    return {**rest, "chosen": chosen, "rejected": rejected}


def _without(columns: Sequence[Columns], *names: str) -> tuple[Columns, ...]:
    return tuple({k: v for k, v in row.items() if k not in names} for row in columns)


def _locate_all(rows: Sequence[Row], column: str, path: Path) -> tuple[Medium, ...]:
    places = (f"{str(path)!r}, row {number}: {column!r}" for number in range(1, len(rows) + 1))
    return tuple(_locate(row.get(column), path.parent, place) for row, place in zip(rows, places, strict=True))


def _locate(value: Any, folder: Path, place: str) -> Medium:
    """A medium named by a row: encoded bytes, the struct of `datasets`, or a file below the folder."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise InputError(f"{place} is {value!r:.60}; give a file name or the bytes of an encoded image")
    if Path(value).is_absolute() or ".." in Path(value).parts:
        raise InputError(f"{place} is {value!r}, outside of {str(folder)!r}; name files relative to the list, below it")
    if not (folder / value).is_file():
        raise InputError(f"{place} is {value!r}, but {str(folder / value)!r} does not exist; correct or remove the row")
    return folder / value


def load_media(media: Sequence[Medium], size: Size, frames: int = 1) -> Media:
    """Decode media to one batch (B, F, 3, H, W), as `Captioned.load` describes."""
    loaded = [_decode(medium, size, frames) for medium in media]
    rates = [rate for _, rate in loaded]
    for medium, rate in zip(media, rates, strict=True):
        if rate != rates[0]:
            raise InputError(
                f"{_name(media[0])} has {float(rates[0]):g} frames a second and {_name(medium)} has {float(rate):g}; "
                f"a batch has one rate: re-encode one of them"
            )
    return Media(torch.stack([pixels for pixels, _ in loaded]), float(rates[0]))


def _name(medium: Medium) -> str:
    return repr(str(medium)) if isinstance(medium, Path) else f"an encoded image of {len(medium)} bytes"


def _decode(medium: Medium, size: Size, frames: int) -> tuple[Tensor, Fraction]:
    """Frames (F, 3, H, W) in [0, 1] and their rate; the rate of stills is 0."""
    if isinstance(medium, Path):
        check_file(medium)
    if isinstance(medium, Path) and medium.suffix.lower() in VIDEOS:
        pictures, rate = _decode_video(medium, frames)
    elif frames == 1:
        pictures, rate = [_decode_image(medium)], Fraction(0)
    else:
        raise InputError(
            f"{_name(medium)} is an image, but {frames} frames were asked for; give videos, or ask for 1 frame"
        )
    height, width = size
    fitted = [
        np.asarray(ImageOps.fit(p, (width, height), Image.Resampling.LANCZOS), np.float32) / 255 for p in pictures
    ]
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).contiguous(), rate


def _decode_image(medium: Medium) -> Image.Image:
    try:
        with Image.open(io.BytesIO(medium) if isinstance(medium, bytes) else medium) as image:
            _check_pixels(medium, image.width, image.height)
            if image.mode[0] in "IF":  # pillow would clip these to white
                raise InputError(f"{_name(medium)} has more than 8 bits a channel; save it with 8")
            return ImageOps.exif_transpose(image).convert("RGB")
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(_too_large(medium)) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InputError(f"{_name(medium)} is not a whole image: {error}") from None


def _decode_video(path: Path, frames: int) -> tuple[list[Image.Image], Fraction]:
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            _check_pixels(path, stream.codec_context.width, stream.codec_context.height)
            rate = stream.average_rate or Fraction(0)
            pictures = [frame.to_image() for frame in _first(container.decode(stream), frames)]
    except (av.error.FFmpegError, IndexError) as error:
        raise InputError(f"{str(path)!r} is not a whole video: {error}") from None
    if len(pictures) < frames:
        raise InputError(
            f"{str(path)!r} has {len(pictures)} frames, but {frames} were asked for; take fewer, or leave it out"
        )
    return pictures, rate if frames > 1 else Fraction(0)


def _first(items: Iterator[Any], count: int) -> list[Any]:
    return [item for item, _ in zip(items, range(count), strict=False)]


def _check_pixels(medium: Medium, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(_too_large(medium))


def _too_large(medium: Medium) -> str:
    return f"{_name(medium)} has more than {MAX_PIXELS // 10**6} million pixels and is not decoded; make it smaller"
