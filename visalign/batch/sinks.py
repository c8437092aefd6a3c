"""What a run writes: an append-only journal, which is the truth, and the table, which is made from it at the end.

A line of the journal is one reward's word on one content; the key holds what decides the score. A killed run leaves at
most its last line torn, and that line is cut off. The table is written under a temporary name and renamed.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from visalign.batch.judging import Asked, Outcome
from visalign.batch.ledger import FileScores
from visalign.batch.tables import pyarrow_parquet
from visalign.types import InputError, RunError

FIELDS = ("row", "file", "prompt", "reward", "score", "error", "components", "columns")
_ROWS = 4096  # of a parquet file at once

Row = dict[str, Any]


class Journal:
    """The scores of a run, appended as they come.

    Args:
        path: the file; made where there is none.
        rewards: name → params; a journal of other ones is refused.
        fresh: begin again.

    Raises:
        InputError: the journal was written with other rewards or params, or is damaged.
    """

    def __init__(self, path: Path, rewards: Asked, fresh: bool = False) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        self._header = {"visalign": "score", "rewards": rewards}
        self._file = path.open("a+b")
        self._cut_torn_line()
        if self._file.tell() == 0:
            self._write([self._header])
        self._check_header()

    def _cut_torn_line(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            self._file.seek(start)
            newline = self._file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    def _check_header(self) -> None:
        first = list(islice(_lines(self.path), 2))
        before, now = first[0], json.loads(json.dumps(self._header, default=str))
        if before == now:
            return
        if len(first) == 1:  # nothing was scored under the other settings
            self._file.truncate(0)
            self._write([self._header])
            return
        known = before.get("rewards") if isinstance(before, dict) else None
        raise InputError(
            f"{str(self.path)!r} was written with other settings, {known}, and these are {now['rewards']}; repeat the "
            f"former command, write to another output, or start again with --fresh"
        )

    def outcomes(self) -> Iterator[Outcome]:
        """What was scored before.

        Raises:
            InputError: a line is damaged.
        """
        for line in islice(_lines(self.path), 1, None):
            yield Outcome(**line)

    def append(self, outcomes: Iterable[Outcome]) -> None:
        """Write outcomes; they are kept whatever happens to this process afterwards.

        Raises:
            RunError: the disk is full or gone.
        """
        self._write([{k: v for k, v in vars(o).items() if v not in ("", {})} for o in outcomes])

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        try:
            self._file.write(b"".join(json.dumps(row, default=str).encode() + b"\n" for row in rows))
            self._file.flush()
        except OSError as error:
            raise RunError(f"{str(self.path)!r} cannot be written: {error.strerror}; what it holds is kept") from error

    def close(self) -> None:
        """End writing."""
        self._file.close()


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise InputError(f"{str(path)!r} is damaged at line {number}; start again with --fresh") from None


def journal_path(out: Path) -> Path:
    """Where the journal of an output stands.

    Example:
        >>> journal_path(Path("runs/results.csv")).name
        'results.csv.journal.jsonl'
    """
    return out.with_name(f"{out.name}.journal.jsonl")


def check_out(out: Path, fresh: bool) -> None:
    """Refuse an output that cannot be written, or that another program made.

    Raises:
        InputError: the ending is unknown, pyarrow is missing, or the file is there without its journal.
    """
    if out.suffix not in WRITERS:
        raise InputError(f"{str(out)!r} ends in none of {', '.join(WRITERS)}; write for example --out scores.csv")
    if out.suffix == ".parquet":
        pyarrow_parquet(out)
    if out.exists() and not fresh and not journal_path(out).exists():
        raise InputError(
            f"{str(out)!r} exists, but has no journal beside it; write to another output, or replace it with --fresh"
        )


def write_table(files: Iterable[FileScores], out: Path) -> None:
    """Write one row a file and reward, in order, under a temporary name; then rename.

    Args:
        files: in the order of the output.
        out: a .csv, .jsonl or .parquet file.
    """
    temporary = out.with_name(f".{out.name}.tmp")
    WRITERS[out.suffix]((row for file in files for row in rows_of(file)), temporary)
    os.replace(temporary, out)


def rows_of(file: FileScores) -> Iterator[Row]:
    """The rows of one file, one a reward: `row, file, prompt, reward, score, error, components, columns`."""
    for o in file.outcomes:
        values = (file.row, file.file, file.prompt, o.reward, o.score, o.error, o.components, file.columns)
        yield dict(zip(FIELDS, values, strict=True))


def _flat(row: Row) -> Row:
    return row | {name: _json(row[name]) for name in ("components", "columns")}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()  # half surrogate pairs


def _write_csv(rows: Iterator[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(_flat(row) for row in rows)


def _write_jsonl(rows: Iterator[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_json(row) + "\n" for row in rows)


def _write_parquet(rows: Iterator[Row], path: Path) -> None:
    parquet = pyarrow_parquet(path)
    import pyarrow

    kinds = {"row": pyarrow.int64(), "score": pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in FIELDS])
    with parquet.ParquetWriter(path, schema) as writer:
        while batch := [_flat(row) for row in islice(rows, _ROWS)]:
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))


WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
