"""One page with thumbnails and scores that sorts and filters, as a single file that works from disk."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

from PIL import Image

from visalign.batch.decoding import decode
from visalign.batch.item import Item, Unscorable
from visalign.batch.ledger import FileScores
from visalign.batch.sources import pick
from visalign.batch.table import ScoreTable
from visalign.charts import number
from visalign.media_io import to_uint8
from visalign.report import page as render

THUMBNAIL = 160
"""Longest side in pixels; smaller images stay as they are, without loss."""
_THREADS = 2  # each may hold one decoded picture


@dataclass(frozen=True)
class Card:
    """One file of the page.

    Attributes:
        file: its name.
        prompt: empty where there is none.
        source: the thumbnail as a data URL; empty where the file cannot be shown.
        error: why a reward could not judge it, or empty.
        shown: (name, text) of each score.
        values: all scores and their parts as JSON, for sorting and filtering.
    """

    file: str
    prompt: str
    source: str
    error: str
    shown: tuple[tuple[str, str], ...]
    values: str


def write_gallery(table: ScoreTable, path: Path, files: Sequence[FileScores] | None, limit: int) -> None:
    """Write the page; see `ScoreTable.gallery`."""
    shown = chosen(table, limit) if files is None else list(files)[:limit]
    total = len(table) if files is None else len(files)
    sources = thumbnails(table.paths, {file.row: file.file for file in shown})
    names = list(dict.fromkeys((*table.rewards, *(name for file in shown for name in file.values))))
    cards = [card(file, sources.get(file.row, ""), table.rewards) for file in shown]
    html = render("gallery.html.j2", cards=cards, names=names, rewards=table.rewards, total=total)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(html, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)


def chosen(table: ScoreTable, limit: int) -> list[FileScores]:
    """The best files by the first reward, and after them, where there is room, those that it could not judge."""
    judged = table.best(limit)
    failed = (file for file in table.files() if table.rewards[0] not in file.values)
    return judged + list(islice(failed, limit - len(judged)))


def card(file: FileScores, source: str, rewards: Sequence[str]) -> Card:
    """What the page says of a file."""
    values = file.values
    shown = tuple((name, number(values[name]) if name in values else "not judged") for name in rewards)
    return Card(file.file, file.prompt, source, file.error, shown, json.dumps(values))


def thumbnails(paths: Sequence[str], rows: Mapping[int, str]) -> dict[int, str]:
    """Row → data URL; rows that cannot be decoded are left out."""
    with ThreadPoolExecutor(_THREADS, "visalign-thumbnail") as pool:
        found, again = dict[int, str](), pick(paths, rows)
        while chunk := list(islice(again, 4 * _THREADS)):
            urls = pool.map(thumbnail, [item for _, item in chunk])
            found |= {row: url for (row, _), url in zip(chunk, urls, strict=True) if url}
    return found


def thumbnail(item: Item) -> str:
    """A picture, or a video's middle frame, as a WebP data URL; empty where it cannot be decoded."""
    try:
        pixels = decode(item, lambda count: [count // 2]).pixels[0]
    except Unscorable:
        return ""
    picture = Image.fromarray(to_uint8(pixels)[0])
    exact = max(picture.size) <= THUMBNAIL
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    picture.save(buffer, format="WEBP", lossless=exact, quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
