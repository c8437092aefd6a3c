"""Rows of jsonl, csv and parquet files, one at a time: a list of any length takes no memory."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visalign.prompts import Row, check_file, json_row
from visalign.types import InputError

TABLES = (".jsonl", ".csv", ".parquet")
_PARQUET_ROWS = 16  # at once: a row may hold an encoded picture


def stream_rows(path: Path) -> Iterator[Row]:
    """The rows of a table; errors are raised when their row is reached.

    Args:
        path: a .jsonl, .csv or .parquet file.

    Raises:
        InputError: the file is missing or of another kind, a row is torn, or parquet needs `visalign[data]`.
    """
    if path.suffix not in TABLES:
        raise InputError(f"{str(path)!r} is no table; give one of {', '.join(TABLES)}")
    check_file(path)
    return {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[path.suffix](path)


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(_decoded(file, path), 1):
            if line.strip():
                yield json_row(line, f"{str(path)!r}, line {number}", "file_name")


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(_decoded(file, path), strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{str(path)!r}, line {reader.line_num}: not as many cells as the header has; quote commas"
                    )
                yield row
        except csv.Error as error:
            raise InputError(f"{str(path)!r} is not CSV after line {reader.line_num}: {error}") from None


def _decoded(lines: Iterator[str], path: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not UTF-8 ({error.reason}); save it as UTF-8") from None


def _parquet(path: Path) -> Iterator[Row]:
    parquet = pyarrow_parquet(path)
    import pyarrow.lib

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                yield from batch.to_pylist()
    except pyarrow.lib.ArrowException as error:
        raise InputError(f"{str(path)!r} is not a readable parquet file: {error}") from None


def pyarrow_parquet(path: Path) -> Any:
    """The module that reads and writes parquet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise InputError(f"{str(path)!r} needs pyarrow; install it with: pip install 'visalign[data]'") from None
    return pyarrow.parquet
