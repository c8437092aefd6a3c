"""Which prompt a medium has: from a table, from the text beside it, from the chunks of a PNG, or one for all."""

from __future__ import annotations

import io
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from visalign.batch.item import Item, Unscorable, why
from visalign.batch.sources import FILE_COLUMNS
from visalign.batch.tables import TABLES, stream_rows
from visalign.prompts import TEXT_COLUMNS, Row, pick_column, read_prompts
from visalign.types import Prompts

CHUNKS = ("prompt", "Description", "parameters")
"""Text chunks of a PNG that hold a prompt, the first that is there."""
_MAX_TEXT = 2**20
_ENDS = ("\nNegative prompt:", "\nSteps:")  # what follows the prompt in `parameters`

Table = str | Path | Mapping[str, str] | Prompts


class Captions:
    """A table of prompts, by file or by prompt, on disk where it is long.

    With a column that names files (`file_name`, `image`, `video`, `file`, `path`) it gives a file its prompt and
    columns; the name is the path as it was given, or the path below the folder, or the bare name. Without one it gives
    the columns to a file whose prompt is found elsewhere.

    Args:
        table: a jsonl, csv or parquet file, `shapes/held_out`, a mapping from file to prompt, Prompts, or None.
        fallback: the prompt of files that have none of their own; None is none.

    Raises:
        InputError: the table has no column with prompts, or cannot be read.

    Example:
        >>> Captions({"a.png": "a cat"}, None).by_file(Item("photos/a.png", "photos/a.png"), ["photos"]).prompt
        'a cat'
    """

    def __init__(self, table: Table | None, fallback: str | None) -> None:
        self.fallback = fallback
        self._rows = sqlite3.connect("", isolation_level=None)
        self._rows.execute("CREATE TABLE rows (key TEXT PRIMARY KEY, prompt TEXT, columns TEXT) WITHOUT ROWID")
        self._rows.execute("BEGIN")
        self._of_files = table is not None and self._fill(_rows_of(table), str(table))

    def _fill(self, rows: Iterator[Row], source: str) -> bool:
        """Keep the rows; returns whether they are by file."""
        file_column: str | None = None
        text_column = ""
        for number, row in enumerate(rows):
            if number == 0:
                file_column = next((name for name in FILE_COLUMNS if name in row), None)
                text_column = pick_column([row], TEXT_COLUMNS, source)
            prompt = str(row.get(text_column) or "").strip()
            key = os.path.normpath(str(row.get(file_column))) if file_column else prompt
            rest = {k: v for k, v in row.items() if k not in (file_column, text_column)}
            self._rows.execute("INSERT OR IGNORE INTO rows VALUES (?, ?, ?)", (key, prompt, json.dumps(rest)))
        return file_column is not None

    def by_file(self, item: Item, roots: Iterable[str]) -> Item:
        """The item with the prompt and columns that the table has for its file; its own come first."""
        if not self._of_files or item.prompt is not None:
            return item
        below = [os.path.relpath(item.name, root) for root in roots if item.name.startswith(root)]
        for key in (os.path.normpath(item.name), *below, os.path.basename(item.name)):
            found = self._find(key)
            if found is not None:
                return replace(item, prompt=found[0] or None, columns={**found[1], **item.columns})
        return item

    def columns(self, prompt: str | None, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """The columns of a prompt, where the table is by prompt; an item's own come first."""
        if self._of_files or prompt is None:
            return columns
        found = self._find(prompt)
        return columns if found is None else {**found[1], **columns}

    def _find(self, key: str) -> tuple[str, dict[str, Any]] | None:
        found = self._rows.execute("SELECT prompt, columns FROM rows WHERE key = ?", (key,)).fetchone()
        return found and (found[0], json.loads(found[1]))


def _rows_of(table: Table) -> Iterator[Row]:
    if isinstance(table, Mapping):
        return iter([{"file_name": file, "prompt": prompt} for file, prompt in table.items()])
    if isinstance(table, Prompts):
        return iter([{**columns, "prompt": text} for text, columns in zip(table.texts, table.columns, strict=True)])
    if str(table).endswith(TABLES):
        return stream_rows(Path(table))
    return _rows_of(read_prompts(table))


def own_prompt(item: Item, is_png: bool) -> str | None:
    """The prompt that stands beside a file, or in it.

    Raises:
        Unscorable: the text beside it is not readable UTF-8.
    """
    beside = _sidecar(item) if item.is_whole_file else None
    return beside or (_chunk(item) if is_png else None)


def _sidecar(item: Item) -> str | None:
    assert item.path is not None
    try:
        with open(os.path.splitext(item.path)[0] + ".txt", "rb") as file:
            return file.read(_MAX_TEXT).decode("utf-8-sig").strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unscorable(f"{why(error)}, the .txt file beside it") from None
    except UnicodeDecodeError:
        raise Unscorable("unreadable: the .txt file beside it is not UTF-8") from None


def _chunk(item: Item) -> str | None:
    try:
        with Image.open(io.BytesIO(item.part(0, _MAX_TEXT)), formats=["PNG"]) as image:  # chunks before the pixels
            chunks = dict(image.info)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # decoding will say what is wrong with it
    texts = (_text(chunks[name]) for name in CHUNKS if isinstance(chunks.get(name), str))
    return next((text for text in texts if text), None)


def _text(chunk: str) -> str:
    # A prompt as text: workflow graphs in JSON are none, and the settings after a prompt are cut off.
    try:
        held = json.loads(chunk)
    except ValueError:
        held = chunk
    if not isinstance(held, str):
        return "" if isinstance(held, dict | list) else chunk.strip()
    for end in _ENDS:
        held = held.partition(end)[0]
    return held.strip()
