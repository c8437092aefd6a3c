"""Prompts from the built-in world or from text, jsonl, csv and parquet files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visalign import shapes
from visalign.section import nearest
from visalign.types import InputError, Prompts

BUILT_IN = ("shapes/train", "shapes/held_out")
TEXT_COLUMNS = ("prompt", "text", "caption")
Row = dict[str, Any]


def read_prompts(source: str | Path) -> Prompts:
    """Prompts with their columns.

    Args:
        source: `shapes/train`, `shapes/held_out`, a .txt file with a prompt a line (blank lines are skipped), or a
            .jsonl, .csv or .parquet file with a column `prompt`, `text` or `caption`, the first of these that it has.
            All other columns are kept.

    Raises:
        InputError: the file is missing, empty, not UTF-8, torn, or has no such column; parquet needs `visalign[data]`.

    Example:
        >>> prompts = read_prompts("shapes/train")
        >>> len(prompts) > 100, sorted(prompts.columns[0])
        (True, ['exclude', 'include', 'tag'])
    """
    if str(source) in BUILT_IN:
        rows = shapes.prompts("train" if str(source) == BUILT_IN[0] else "held_out")
        return to_prompts(rows, str(source))
    path = Path(source)
    if path.suffix == ".txt":
        lines = (line.strip() for line in read_text(path).splitlines())
        return to_prompts([{"prompt": line} for line in lines if line], str(path))
    return to_prompts(read_rows(path), str(path))


def to_prompts(rows: Sequence[Row], source: str) -> Prompts:
    """Rows with a text column as prompts; `source` is named in messages.

    Raises:
        InputError: there are no rows, no text column, or a text is not a non-empty string.

    Example:
        >>> to_prompts([{"text": "a star", "seed": 3}], "here")
        Prompts(texts=('a star',), columns=({'seed': 3},), images=())
    """
    if not rows:
        raise InputError(f"{source!r} is empty; give it at least one prompt")
    name = pick_column(rows, TEXT_COLUMNS, source)
    texts = tuple(_text(row, name, number, source) for number, row in enumerate(rows, 1))
    return Prompts(texts, tuple({k: v for k, v in row.items() if k != name} for row in rows))


def pick_column(rows: Sequence[Mapping[str, Any]], allowed: Sequence[str], source: str) -> str:
    """The first of the allowed columns that the first row has.

    Raises:
        InputError: it has none of them; the message names those that it has.
    """
    found = [name for name in allowed if name in rows[0]]
    if not found:
        raise InputError(
            f"{source!r} has no column {' or '.join(allowed)}; its columns are {', '.join(rows[0]) or 'none'}. "
            f"Rename the right one to {allowed[0]}"
        )
    return found[0]


def _text(row: Mapping[str, Any], name: str, number: int, source: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{source!r}, row {number}: {name!r} is {text!r}, not a text; correct or remove the row")
    return text.strip()


def read_rows(path: Path) -> list[Row]:
    """The rows of a .jsonl, .csv or .parquet file.

    Raises:
        InputError: the ending is another, or the file cannot be read.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        near = nearest(str(path), BUILT_IN)
        raise InputError(f"{str(path)!r} is none of .txt, .jsonl, .csv, .parquet, {', '.join(BUILT_IN)}.{near}")
    return readers[path.suffix](path)


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark.

    Raises:
        InputError: it does not exist, is a folder, or is not UTF-8.
    """
    check_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{str(path)!r} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def check_file(path: Path) -> None:
    """Refuse a path that is no file.

    Raises:
        InputError: nothing is there, or a folder.
    """
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{str(path)!r} {state} (seen from {str(Path.cwd())!r}); give the path of a file")


def _read_jsonl(path: Path) -> list[Row]:
    lines = enumerate(read_text(path).split("\n"), 1)
    return [json_row(line, f"{str(path)!r}, line {number}") for number, line in lines if line.strip()]


def json_row(line: str, place: str, column: str = "prompt") -> Row:
    """A line of a jsonl file.

    Args:
        line: JSON.
        place: where it stands, for the message.
        column: named in the message as an example.

    Raises:
        InputError: it is no JSON object.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place} is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise InputError(f'{place} is {row!r:.60}, not an object; write {{"{column}": "..."}} on each line')
    return row


def _read_csv(path: Path) -> list[Row]:
    reader = csv.DictReader(read_text(path).splitlines(keepends=True), strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{str(path)!r}, line {reader.line_num}: not as many cells as the header has; quote commas"
                )
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{str(path)!r} is not CSV after line {reader.line_num}: {error}") from None
    return rows


def _read_parquet(path: Path) -> list[Row]:
    check_file(path)
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise InputError(f"{str(path)!r} needs pyarrow; install it with: pip install 'visalign[data]'") from None
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.lib.ArrowException as error:
        raise InputError(f"{str(path)!r} is not a readable parquet file: {error}") from None
