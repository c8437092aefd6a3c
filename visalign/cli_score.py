"""The command `score`. Only typer is imported here, as in `cli.py`: the rest comes when the command runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from visalign.batch import Progress, ScoreTable
    from visalign.batch.ledger import FileScores

LISTED = 20
"""Files that could not be scored, and best files, that are printed."""
INTERRUPTED = 130

Paths = Annotated[list[str], typer.Argument(help="Folders, files, globs, jsonl/csv/parquet tables, webdataset tars.")]
Names = Annotated[list[str], typer.Option(help="Names, comma separated: clip,jpeg_size:quality=80; may be repeated.")]
Out = Annotated[Path, typer.Option(help="A .csv, .jsonl or .parquet file: one row a file and reward.")]
Judges = Annotated[str | None, typer.Option(help="shapes: the shipped tiny models in place of the real ones.")]
Text = Annotated[str | None, typer.Option(help="For files that have no prompt of their own.")]
Prompts = Annotated[str | None, typer.Option(help="Table: prompts by file, or columns by prompt.")]
Page = Annotated[Path | None, typer.Option(help="A page with thumbnails that sorts and filters.")]
PageMax = Annotated[int, typer.Option(min=1, help="Files on the page, the best by the first reward.")]
Top = Annotated[int | None, typer.Option(min=1, help="Choose so many, the best, for the page and --copy-to.")]
By = Annotated[str | None, typer.Option(help="What ranks: a reward or reward/part; the default is the first.")]
Min = Annotated[list[str] | None, typer.Option("--min", metavar="NAME=VALUE", help="Choose those with at least this.")]
CopyTo = Annotated[Path | None, typer.Option(help="Copy the chosen files into this folder.")]
Pairs = Annotated[Path | None, typer.Option(help="A .jsonl file of preference pairs of files with one prompt.")]
Rule = Annotated[str, typer.Option(help="best_worst, cross or pareto.")]
TopN = Annotated[int | None, typer.Option(min=1, help="Best and worst of a prompt for cross; the default is 2.")]
Gap = Annotated[float, typer.Option(min=0, help="Least difference of a pair.")]
Batch = Annotated[int, typer.Option(min=1, help="Files of one call of a reward.")]
Workers = Annotated[int, typer.Option(min=0, help="Threads that decode; 0 is one a core.")]
Nproc = Annotated[int, typer.Option(min=1, help="Processes, or actors of Ray, one a GPU.")]
Engine = Annotated[str, typer.Option(help="local, or ray for more than one machine.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 when a file could not be scored.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget what --out and its journal hold.")]


@dataclass(frozen=True)
class After:
    """What is made of the scores; the options of the same names."""

    out: Path
    gallery: Path | None
    gallery_max: int
    top: int | None
    by: str | None
    least: dict[str, float]
    copy_to: Path | None
    pairs: Path | None
    pair_rule: str
    top_n: int | None
    min_gap: float

    def check(self, paths: list[str], rewards: list[str]) -> None:
        """Refuse what cannot be done, before anything is spent."""
        from visalign.batch.judging import parse_rewards
        from visalign.batch.pairs import check_pairs
        from visalign.batch.table import check_names, check_outside

        check_names([*([self.by] if self.by else []), *self.least], tuple(parse_rewards(rewards)))
        if self.copy_to is not None:
            check_outside(self.copy_to, paths)
        if self.pairs is not None:
            check_pairs(self.pairs, self.pair_rule, self.top_n, self.min_gap)

    def do(self, table: ScoreTable) -> None:
        """Show, copy and write."""
        show(table, self.out)
        chosen = None
        if self.top or self.by or self.least or self.copy_to:
            chosen = table.best(self.top, self.by, self.least)
            show_best(chosen, self.by or table.rewards[0])
        if self.copy_to is not None and chosen is not None:
            typer.echo(f"{len(table.copy(chosen, self.copy_to))} files copied to {self.copy_to}")
        if self.gallery is not None:
            table.gallery(self.gallery, chosen if self.top or self.least else None, self.gallery_max)
            typer.echo(f"page: {self.gallery}")
        if self.pairs is not None:
            count = table.pairs(self.pairs, self.pair_rule, by=self.by, top_n=self.top_n, min_gap=self.min_gap)  # type: ignore[arg-type]
            typer.echo(f"{count:,} pairs in {self.pairs}")


def score(
    paths: Paths, reward: Names, out: Out, judges: Judges = None, prompt: Text = None, prompts: Prompts = None,
    gallery: Page = None, gallery_max: PageMax = 2000, top: Top = None, by: By = None, least: Min = None,
    copy_to: CopyTo = None, pairs: Pairs = None, pair_rule: Rule = "best_worst", top_n: TopN = None, min_gap: Gap = 0.0,
    batch: Batch = 32, workers: Workers = 0, nproc: Nproc = 1, engine: Engine = "local", device: Device = "auto",
    strict: Strict = False, fresh: Fresh = False,
) -> None:  # fmt: skip
    """Score images and videos with rewards; a stopped run goes on with the same command."""
    from visalign.batch import score as run
    from visalign.progress import console

    bounds = minimum(least or [])
    after = After(out, gallery, gallery_max, top, by, bounds, copy_to, pairs, pair_rule, top_n, min_gap)
    after.check(paths, reward)
    try:
        with Meter(console()) as meter:
            table = run(
                paths, reward, prompts=prompts, prompt=prompt, judges=judges, out=out, batch=batch, nproc=nproc,
                engine=engine, workers=workers, device=device, fresh=fresh, progress=meter,  # type: ignore[arg-type]
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"interrupted; {out}.journal.jsonl keeps what was scored, and the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    after.do(table)
    raise typer.Exit(1 if strict and table.failures() else 0)


def minimum(texts: list[str]) -> dict[str, float]:
    """Least values by name.

    Raises:
        InputError: a text is not NAME=VALUE with a number.

    Example:
        >>> minimum(["clip=0.2", "shapes/strict=1"])
        {'clip': 0.2, 'shapes/strict': 1.0}
    """
    from visalign.types import InputError

    found = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"--min takes NAME=VALUE, but {text!r} came; write for example --min clip=0.2")
    return found


def show(table: ScoreTable, out: Path) -> None:
    """Print how many files were scored, and those that were not, with their reasons."""
    failures = table.failures()
    reasons = ", ".join(f"{count} {reason}" for reason, count in failures.most_common())
    failed = f"; {failures.total():,} could not be scored: {reasons}" if failures else ""
    typer.echo(f"{len(table):,} files by {', '.join(table.rewards)}{failed}")
    listed = 0
    for file in table.files() if failures else ():
        if file.error and listed < LISTED:
            some = f" ({', '.join(file.unjudged)})" if len(file.unjudged) < len(table.rewards) else ""
            typer.echo(f"  {file.file}: {file.error}{some}")
        listed += bool(file.error)
    if listed > LISTED:
        typer.echo(f"  and {listed - LISTED:,} more, with their reasons in {out}")
    typer.echo(f"scores: {out}")


def show_best(chosen: list[FileScores], by: str) -> None:
    """Print the best files with their scores."""
    from rich.table import Table
    from rich.text import Text

    from visalign.charts import number
    from visalign.progress import console

    names = list(dict.fromkeys((by, *(o.reward for file in chosen[:1] for o in file.outcomes))))
    rows = Table("file", *names, "prompt", box=None)
    for file in chosen[:LISTED]:
        values = (number(file.values[name]) if name in file.values else "" for name in names)
        rows.add_row(*map(Text, (file.file, *values, file.prompt)))
    console().print(rows)
    typer.echo(f"{len(chosen):,} files chosen")


class Meter:
    """Shows how far a run is: a moving line on a terminal, a line every half minute elsewhere.

    Args:
        terminal: where to print.
    """

    EVERY = 30.0

    def __init__(self, terminal: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self.terminal, self.said = terminal, 0.0
        self.bar = Progress(*columns, console=terminal, disable=not terminal.is_terminal, transient=True)
        self.task = self.bar.add_task("loading", total=None)

    def __enter__(self) -> Meter:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def __call__(self, now: Progress) -> None:
        """Show how far the run is."""
        self.bar.update(self.task, description=line(now), total=now.total, completed=now.files)
        if not self.terminal.is_terminal and now.seconds - self.said >= self.EVERY:
            self.said = now.seconds
            self.terminal.print(line(now), highlight=False)


def line(now: Progress) -> str:
    """Files, files a second, time left and peak memory.

    Example:
        >>> from visalign.batch import Progress
        >>> line(Progress(files=500, scored=400, seconds=10.0, total=2000))[:40]
        '500 of 2,000 files, 50.0/s, 30 s left, p'
    """
    import resource

    from visalign.report import duration

    rate = now.files / now.seconds if now.seconds else 0.0
    total = f" of {now.total:,}" if now.total else ""
    left = f", {duration((now.total - now.files) / rate)} left" if now.total and rate else ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"{now.files:,}{total} files, {rate:.1f}/s{left}, peak memory {peak:.1f} GB"
