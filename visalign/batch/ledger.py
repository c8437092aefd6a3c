"""What is known in a run: files in their order, and what each content scored. On disk, so any number takes no memory.

It is made anew in every run: the results from the journal, the files from the sources.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from visalign.batch.judging import Outcome

_TABLES = """
CREATE TABLE files (row INTEGER PRIMARY KEY, name TEXT, prompt TEXT, columns TEXT, key TEXT, error TEXT);
CREATE TABLE results (key TEXT, reward TEXT, score REAL, components TEXT, error TEXT, PRIMARY KEY (key, reward))
    WITHOUT ROWID;
CREATE TABLE claims (key TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_FILES = """
SELECT row, name, prompt, columns, files.error, reward, score, components, results.error
FROM files LEFT JOIN results USING (key)
"""


@dataclass(frozen=True)
class FileScores:
    """What the rewards say of one file.

    Attributes:
        row: its place among all files.
        file: its name.
        prompt: empty where there is none.
        columns: of its row in a table.
        outcomes: one a reward, in the order in which they were asked for.
    """

    row: int
    file: str
    prompt: str
    columns: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]

    @property
    def values(self) -> dict[str, float]:
        """Reward → score, and `reward/part` → a part of it; those that could not be judged are missing."""
        values: dict[str, float] = {}
        for o in self.outcomes:
            if o.score is not None:
                values |= {o.reward: o.score, **{f"{o.reward}/{part}": v for part, v in o.components.items()}}
        return values

    @property
    def error(self) -> str:
        """Why it has no score, or not from every reward; empty where it has all."""
        return next((o.error for o in self.outcomes if o.score is None), "")

    @property
    def unjudged(self) -> tuple[str, ...]:
        """The rewards that give it no score."""
        return tuple(o.reward for o in self.outcomes if o.score is None)


class Ledger:
    """Files and results of one run.

    Args:
        rewards: names, in the order of the output.
    """

    def __init__(self, rewards: Sequence[str]) -> None:
        self.rewards = tuple(rewards)
        self.count = 0
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-16000;" + _TABLES)
        self._db.execute("BEGIN")

    def add_file(self, name: str, prompt: str | None, columns: str, key: str, error: str = "") -> None:
        """Note the next file; `columns` are JSON, and a file with an error has no key."""
        values = (self.count, name, prompt or "", columns, key or None, error)
        self._db.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", values)
        self.count += 1

    def claim(self, key: str) -> tuple[str, ...]:
        """The rewards that have not judged a content; none for one that was asked for before in this run."""
        if self._db.execute("INSERT OR IGNORE INTO claims VALUES (?)", (key,)).rowcount == 0:
            return ()
        known = {name for (name,) in self._db.execute("SELECT reward FROM results WHERE key = ?", (key,))}
        return tuple(name for name in self.rewards if name not in known)

    def record(self, outcomes: Iterable[Outcome]) -> None:
        """Keep outcomes; the first of a content and reward counts."""
        rows = ((o.key, o.reward, o.score, json.dumps(o.components), o.error) for o in outcomes)
        self._db.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?)", rows)

    def __len__(self) -> int:
        return self.count

    def files(self, by_prompt: bool = False) -> Iterator[FileScores]:
        """Every file with its scores, in order; or with files of one prompt side by side."""
        order = "prompt, row" if by_prompt else "row"
        found = self._db.cursor().execute(f"{_FILES} ORDER BY {order}")
        for _, rows in groupby(found, key=itemgetter(0)):
            yield self._file(list(rows))

    def _file(self, rows: Sequence[tuple[Any, ...]]) -> FileScores:
        row, name, prompt, columns, broken = rows[0][:5]
        found = {reward: (score, parts, error) for *_, reward, score, parts, error in rows}
        results = [(reward, *found.get(reward, (None, "{}", broken))) for reward in self.rewards]
        outcomes = (Outcome("", reward, score, json.loads(parts), error) for reward, score, parts, error in results)
        return FileScores(row, name, prompt, json.loads(columns), tuple(outcomes))
