"""Preference pairs from scores, in the form that `visalign.data.read_pairs` takes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from visalign.batch.item import Item
from visalign.batch.ledger import FileScores
from visalign.batch.sources import pick
from visalign.batch.table import ScoreTable, check_names, copy_item, safe_stem
from visalign.section import nearest
from visalign.types import InputError

Pair = tuple[FileScores, FileScores]


@dataclass(frozen=True)
class Choice:
    """How pairs are made of the files of one prompt.

    Attributes:
        by: what ranks them.
        rewards: what a dominating file is at least as good by.
        top_n: how many best and worst `cross` takes.
        min_gap: the least difference.
    """

    by: str
    rewards: tuple[str, ...]
    top_n: int = 2
    min_gap: float = 0.0


def best_worst(files: Sequence[FileScores], choice: Choice) -> Iterator[Pair]:
    """The best with the worst."""
    ranked = _ranked(files, choice.by)
    return _apart(((ranked[0], ranked[-1]),), choice) if ranked else iter(())


def cross(files: Sequence[FileScores], choice: Choice) -> Iterator[Pair]:
    """Each of the best `top_n` with each of the worst; no file is on both sides."""
    ranked = _ranked(files, choice.by)
    count = min(choice.top_n, len(ranked) // 2)
    return _apart(((good, bad) for good in ranked[:count] for bad in ranked[len(ranked) - count :]), choice)


def pareto(files: Sequence[FileScores], choice: Choice) -> Iterator[Pair]:
    """All pairs where the first is at least as good by every reward, by `min_gap` or more, and better by one."""
    judged = [(file, values) for file in files if all(name in (values := file.values) for name in choice.rewards)]
    for good, high in judged:
        for bad, low in judged:
            gaps = [high[name] - low[name] for name in choice.rewards]
            if min(gaps) >= choice.min_gap and max(gaps) > 0:
                yield good, bad


RULES: dict[str, Callable[[Sequence[FileScores], Choice], Iterator[Pair]]] = {
    "best_worst": best_worst, "cross": cross, "pareto": pareto,
}  # fmt: skip


def _ranked(files: Sequence[FileScores], by: str) -> list[FileScores]:
    return sorted((file for file in files if by in file.values), key=lambda file: -file.values[by])


def _apart(pairs: Iterator[Pair] | tuple[Pair, ...], choice: Choice) -> Iterator[Pair]:
    for good, bad in pairs:
        gap = good.values[choice.by] - bad.values[choice.by]
        if gap > 0 and gap >= choice.min_gap:
            yield good, bad


def write_pairs(table: ScoreTable, out: Path, rule: str, by: str | None, top_n: int | None, min_gap: float) -> int:
    """Write the pairs of all prompts; see `ScoreTable.pairs`."""
    check_pairs(out, rule, top_n, min_gap)
    check_names([by] if by else [], table.rewards)
    choice = Choice(by or table.rewards[0], table.rewards, 2 if top_n is None else top_n, min_gap)
    places = _places(table, out, {f.row: f.file for pair in _pairs(table, rule, choice) for f in pair})
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary, count = out.with_name(f".{out.name}.tmp"), 0
    with temporary.open("w", encoding="utf-8") as file:
        for good, bad in _pairs(table, rule, choice):
            file.write(_line(good, bad, places, choice) + "\n")
            count += 1
    if count == 0:
        temporary.unlink()
        raise InputError(
            f"no two files with one prompt are {min_gap:g} or more apart by {choice.by!r} under the rule {rule!r}; "
            f"score several files a prompt, or lower --min-gap"
        )
    os.replace(temporary, out)
    return count


def check_pairs(out: Path, rule: str, top_n: int | None, min_gap: float) -> None:
    """Refuse options that make no pairs.

    Raises:
        InputError: the rule is unknown, `top_n` is given for another rule, or the file is no .jsonl.
    """
    if rule not in RULES:
        raise InputError(f"there is no pair rule {rule!r}.{nearest(rule, RULES)} There are: {', '.join(RULES)}")
    if top_n is not None and rule != "cross":
        raise InputError(f"--top-n belongs to --pair-rule cross, and the rule is {rule}; leave it out")
    if out.suffix != ".jsonl" or min_gap < 0:
        raise InputError(f"pairs go to a .jsonl file with a gap of 0 or more, but {str(out)!r} and {min_gap} came")


def _pairs(table: ScoreTable, rule: str, choice: Choice) -> Iterator[Pair]:
    for prompt, files in groupby(table.ledger.files(by_prompt=True), key=lambda file: file.prompt):
        if prompt:
            yield from RULES[rule](list(files), choice)


def _places(table: ScoreTable, out: Path, rows: Mapping[int, str]) -> dict[int, str]:
    """Row → the file's name seen from the list; media that are not below it are copied beside it."""
    folder, places = out.parent.resolve(), dict[int, str]()
    copies = out.with_name(f"{out.stem}_media")
    for row, item in pick(table.paths, rows):
        inside = _below(item, folder)
        if inside is None:
            copies.mkdir(parents=True, exist_ok=True)
            inside = f"{copies.name}/{copy_item(item, copies, f'{row:06d}_{safe_stem(item.name)}').name}"
        places[row] = inside
    return places


def _below(item: Item, folder: Path) -> str | None:
    if not item.is_whole_file:
        return None
    path = Path(os.path.abspath(str(item.path)))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else None


def _line(good: FileScores, bad: FileScores, places: Mapping[int, str], choice: Choice) -> str:
    shared = {k: v for k, v in good.columns.items() if bad.columns.get(k) == v}
    row = {**shared, "prompt": good.prompt, "chosen": places[good.row], "rejected": places[bad.row]}
    names = {choice.by, *choice.rewards} & good.values.keys() & bad.values.keys()
    row["gap"] = {name: good.values[name] - bad.values[name] for name in sorted(names)}
    return json.dumps(row, ensure_ascii=False)
