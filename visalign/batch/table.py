"""What a run found: every file with its scores, the best of them, and what is made of them."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from visalign.batch.decoding import kind_of
from visalign.batch.item import MEDIA, Item, Unscorable
from visalign.batch.ledger import FileScores, Ledger
from visalign.batch.sinks import Row, check_out, rows_of, write_table
from visalign.batch.sources import pick
from visalign.section import nearest
from visalign.types import InputError, RunError

_NAME = 150  # bytes of a copied file's name; file systems take 255


@dataclass(frozen=True)
class ScoreTable:
    """The scores of all files; on disk, so it is small in memory.

    Attributes:
        ledger: the files and results.
        paths: what was scored.
    """

    ledger: Ledger
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ledger)

    @property
    def rewards(self) -> tuple[str, ...]:
        """Names, in the order in which they were asked for."""
        return self.ledger.rewards

    def files(self) -> Iterator[FileScores]:
        """Every file with its scores, in order."""
        return self.ledger.files()

    def rows(self) -> Iterator[Row]:
        """One row a file and reward: `row, file, prompt, reward, score, error, components, columns`."""
        return (row for file in self.files() for row in rows_of(file))

    def failures(self) -> Counter[str]:
        """How many files some reward could not judge, by reason."""
        return Counter(file.error.partition(":")[0] for file in self.files() if file.error)

    def best(
        self, count: int | None = None, by: str | None = None, minimum: Mapping[str, float] | None = None
    ) -> list[FileScores]:
        """The best files, the best first.

        Args:
            count: how many; None is all that pass.
            by: a reward or `reward/part`; None is the first reward.
            minimum: the least value by reward or part; a file that was not judged does not pass.

        Raises:
            InputError: a name is no reward and no part of one.
        """
        by, minimum = by or self.rewards[0], minimum or {}
        check_names([by, *minimum], self.rewards)
        passing = (
            file
            for file in self.files()
            if by in (values := file.values) and all(values.get(n, -float("inf")) >= v for n, v in minimum.items())
        )
        if count is None:
            return sorted(passing, key=lambda file: -file.values[by])
        return heapq.nlargest(count, passing, key=lambda file: file.values[by])

    def write(self, out: str | Path) -> None:
        """Write a .csv, .jsonl or .parquet file with one row a file and reward.

        Raises:
            InputError: the ending is unknown, or pyarrow is missing.
        """
        check_out(Path(out), fresh=True)
        write_table(self.files(), Path(out))

    def gallery(self, page: str | Path, files: Sequence[FileScores] | None = None, limit: int = 2000) -> None:
        """Write one page that sorts and filters the files and works from disk.

        Args:
            page: the .html file.
            files: what it shows; None is all.
            limit: at most so many, the best by the first reward; the page says so.
        """
        from visalign.batch.gallery import write_gallery

        write_gallery(self, Path(page), files, limit)

    def pairs(
        self,
        out: str | Path,
        rule: Literal["best_worst", "cross", "pareto"] = "best_worst",
        *,
        by: str | None = None,
        top_n: int | None = None,
        min_gap: float = 0.0,
    ) -> int:
        """Write preference pairs of files with one prompt, as `visalign.data.read_pairs` reads them.

        Args:
            out: a .jsonl file; media that are not below its folder are copied beside it.
            rule: `best_worst` takes one pair a prompt, `cross` each of the best with each of the worst, `pareto` those
                where one is at least as good by every reward and better by one.
            by: the reward or part that ranks; None is the first. `pareto` looks at all.
            top_n: for `cross`, how many best and worst; None is 2.
            min_gap: the least difference; for `pareto` by every reward.

        Returns:
            How many pairs were written.

        Raises:
            InputError: the rule or a name is unknown, or no two files make a pair.
        """
        from visalign.batch.pairs import write_pairs

        return write_pairs(self, Path(out), rule, by, top_n, min_gap)

    def copy(self, files: Sequence[FileScores], folder: str | Path) -> list[Path]:
        """Copy files into a folder, the first as 0001_name, each with its prompt in a .txt file beside it.

        Args:
            files: which, in the order of their names.
            folder: made where there is none; nothing is written outside of it.

        Returns:
            The paths of the copies, in the order of the sources.

        Raises:
            InputError: the folder is one of those that were scored, or below it.
        """
        folder = Path(folder)
        check_outside(folder, self.paths)
        folder.mkdir(parents=True, exist_ok=True)
        ranks = {file.row: (rank, file) for rank, file in enumerate(files, 1)}
        copies = []
        for row, item in pick(self.paths, {file.row: file.file for file in files}):
            rank, file = ranks[row]
            copies.append(copy_item(item, folder, f"{rank:04d}_{safe_stem(item.name)}"))
            if file.prompt:
                _write(copies[-1].with_suffix(".txt"), [file.prompt.encode()])
        return copies


def check_names(names: Sequence[str], rewards: Sequence[str]) -> None:
    """Refuse names that are no reward and no part of one.

    Raises:
        InputError: a name is neither.

    Example:
        >>> check_names(["shapes", "shapes/strict"], ["shapes", "clip"])
    """
    for name in names:
        if name not in rewards and not any(name.startswith(f"{reward}/") for reward in rewards):
            raise InputError(f"there is no score {name!r}.{nearest(name, rewards)} There are: {', '.join(rewards)}")


def check_outside(folder: Path, paths: Sequence[str]) -> None:
    """Refuse a folder whose copies would be scored by the next run.

    Raises:
        InputError: it is one of the scored folders, or below one.
    """
    for path in paths:
        if os.path.isdir(path) and folder.resolve().is_relative_to(Path(path).resolve()):
            raise InputError(f"{str(folder)!r} is in {path!r}, which is scored; copy to a folder outside of it")


def copy_item(item: Item, folder: Path, stem: str) -> Path:
    """Write one medium into a folder, under a temporary name; then rename.

    Raises:
        RunError: the medium cannot be read any more.
    """
    ending = os.path.splitext(item.name)[1].lower()
    try:
        target = folder / f"{stem}{ending if ending in MEDIA else f'.{kind_of(item)}'}"
        _write(target, item.pieces(item.size()))
    except Unscorable as error:
        raise RunError(f"{item.name!r} was scored, but cannot be copied any more: {error}") from None
    return target


def _write(target: Path, pieces: Iterable[bytes]) -> None:
    # A link that stands under the name, or the temporary one, is replaced, never followed.
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:
        file.writelines(pieces)
    os.replace(temporary, target)


def safe_stem(name: str) -> str:
    """A file's name without folders and ending, of letters, digits, `-`, `_` and dots only.

    Example:
        >>> safe_stem("shard.tar/../../etc/pass wd.png"), safe_stem(".."), safe_stem("a#7")
        ('pass_wd', '_', 'a_7')
    """
    stem = os.path.splitext(name.replace("\\", "/").rpartition("/")[2])[0]
    kept = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem)
    return kept.encode()[:_NAME].decode(errors="ignore").strip(".") or "_"
