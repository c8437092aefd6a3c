"""A scoring run from paths to a table: read, score what is new, keep the journal, write the output."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from visalign.batch.captions import Captions, Table
from visalign.batch.engine import Setup, score_locally
from visalign.batch.identifying import works
from visalign.batch.item import MEDIA, Item
from visalign.batch.judging import Asked, Outcome, Params, Work, parse_rewards, with_judges
from visalign.batch.ledger import Ledger
from visalign.batch.processes import score_in_processes
from visalign.batch.ray_engine import score_with_ray
from visalign.batch.sinks import Journal, check_out, journal_path, write_table
from visalign.batch.sources import ARCHIVES, check_paths, items
from visalign.batch.table import ScoreTable
from visalign.types import InputError

EVERY = 64
"""Files between two reports while nothing is scored."""

Engine = Callable[[Iterable[Work]], Iterator[list[Outcome]]]


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        files: read so far.
        scored: judgements made in this run, one a content and reward; those that failed count too.
        seconds: since the run began.
        total: files there are; None until a thread has counted them.
    """

    files: int
    scored: int
    seconds: float
    total: int | None = None


def score(
    paths: str | Path | Sequence[str | Path],
    rewards: str | Sequence[str] | Mapping[str, Params],
    *,
    prompts: Table | None = None,
    prompt: str | None = None,
    judges: str | None = None,
    out: str | Path | None = None,
    batch: int = 32,
    nproc: int = 1,
    engine: Literal["local", "ray"] = "local",
    workers: int = 0,
    device: str = "auto",
    fresh: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> ScoreTable:
    """Score images and videos with rewards.

    What was scored stands in a journal beside `out`, so a run that was stopped, however, goes on with the same call; no
    content is scored twice. Files that cannot be scored are listed with their reason, and the rest goes on.

    Args:
        paths: folders, files, globs, tables (jsonl, csv, parquet) and webdataset tars.
        rewards: names such as `clip,aesthetic` or `jpeg_size:quality=80`, or a mapping from name to params.
        prompts: a table of prompts by file or of columns by prompt (`visalign.batch.captions.Captions`), for files that
            have none from a table of `paths`. The text beside a file and the chunks of a PNG come after it.
        prompt: for files that have none of their own.
        judges: `shapes` takes the shipped tiny models in place of the rewards' own.
        out: a .csv, .jsonl or .parquet file with one row a file and reward; None writes nothing.
        batch: files of one call of a reward.
        nproc: processes on this machine, or actors of Ray; each loads the rewards.
        engine: `local`, or `ray` for Ray Data.
        workers: threads that decode, in each process; 0 is one a core, at most 16.
        device: `auto` is the GPU where there is one.
        fresh: forget what `out` and its journal hold.
        progress: called as files are read and scored.

    Raises:
        InputError: a path, reward, table or option is not usable, or `out` was written with other rewards.
        RunError: a reward raised.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8)).save(folder / "a.png")
        >>> [(f.file[-5:], sorted(f.values)) for f in score(folder, "jpeg_size").files()]
        [('a.png', ['jpeg_size'])]
    """
    given = [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    check_paths(given)
    setup = Setup(with_judges(parse_rewards(rewards), judges), batch, workers, device)
    target = Path(out) if out is not None else None
    if target is not None:
        check_out(target, fresh)
    run = _engine(engine, setup, nproc, target or Path("scores"))
    ledger = _scored(given, Captions(prompts, prompt), setup.rewards, run, target, fresh, progress)
    return ScoreTable(ledger, tuple(given))


def _scored(
    given: list[str], captions: Captions, rewards: Asked, run: Engine, target: Path | None, fresh: bool,
    progress: Callable[[Progress], None] | None,
) -> Ledger:  # fmt: skip
    """Score what is new, keep the journal, write the output."""
    ledger = Ledger(tuple(rewards))
    meter = _Meter(ledger, progress)
    meter.count(given)
    todo = works(meter.watched(items(given)), captions, given, ledger)
    with closing(todo), _journal(target, rewards, fresh) as journal:
        ledger.record(journal.outcomes() if journal else ())
        for outcomes in run(todo):
            if journal:
                journal.append(outcomes)
            ledger.record(outcomes)
            meter.add(len(outcomes))
    if len(ledger) == 0:
        raise InputError(f"there are no media in {', '.join(given)}; files that end in {', '.join(MEDIA)} are scored")
    if target is not None:
        write_table(ledger.files(), target)
    return ledger


class _Meter:
    """Tells how far a run is, as files are read and as judgements come."""

    def __init__(self, ledger: Ledger, tell: Callable[[Progress], None] | None) -> None:
        self.ledger, self.tell = ledger, tell
        self.scored, self.start = 0, time.perf_counter()
        self.total: int | None = None

    def count(self, paths: Sequence[str]) -> None:
        """Count the files in a thread of its own, for the time that is left; not where that would read them all."""
        if self.tell is not None and not any(path.endswith((*ARCHIVES, ".parquet")) for path in paths):
            threading.Thread(target=self._count, args=(paths,), daemon=True).start()

    def _count(self, paths: Sequence[str]) -> None:
        with suppress(InputError):  # the run itself meets the same error, and raises it
            self.total = sum(1 for _ in items(paths))

    def watched(self, source: Iterable[Item]) -> Iterator[Item]:
        """The same items."""
        for number, item in enumerate(source):
            if number % EVERY == 0:
                self.add(0)
            yield item

    def add(self, scored: int) -> None:
        """Count judgements."""
        self.scored += scored
        if self.tell is not None:
            self.tell(Progress(len(self.ledger), self.scored, time.perf_counter() - self.start, self.total))


@contextmanager
def _journal(out: Path | None, rewards: Asked, fresh: bool) -> Iterator[Journal | None]:
    if out is None:
        yield None
        return
    with closing(Journal(journal_path(out), rewards, fresh)) as journal:
        yield journal


def _engine(name: str, setup: Setup, nproc: int, out: Path) -> Engine:
    if name == "ray":
        return partial(score_with_ray, setup=setup, nproc=nproc, folder=out.with_name(f".{out.name}.ray"))
    if name != "local":
        raise InputError(f"there is no engine {name!r}; write local or ray")
    if nproc > 1:
        return partial(score_in_processes, setup=setup, nproc=nproc)
    return partial(score_locally, judges=setup.judges(), batch=setup.batch, workers=setup.threads)
