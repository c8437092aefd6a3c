"""Scoring on a cluster through Ray Data: works go out as parquet files, actors hold the rewards, outcomes stream back.

The folder of the output must be seen by all machines, as the media must be.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

from visalign.batch.engine import Setup, score_locally
from visalign.batch.identifying import canonical
from visalign.batch.item import Item
from visalign.batch.judging import Outcome, Work
from visalign.batch.tables import pyarrow_parquet
from visalign.types import InputError, RunError

CHUNK = 8
"""Batches of one list of works."""
_ITEM = ("name", "path", "offset", "length", "data")


def score_with_ray(works: Iterable[Work], setup: Setup, nproc: int, folder: Path) -> Iterator[list[Outcome]]:
    """The outcomes of all works, a task at a time.

    Args:
        works: all of them are listed before the first is scored.
        setup: rewards, batch, threads of each actor, device.
        nproc: number of actors, each with one GPU where the cluster has any.
        folder: for the lists of works; removed at the end.

    Raises:
        InputError: Ray is not installed.
        RunError: a reward raised.
    """
    # Under `uv run` Ray would start every worker through uv, in a copy of the folder that lacks the environment.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError("--engine ray needs Ray; install it with: pip install 'visalign[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        paths = _write_works(works, folder, CHUNK * setup.batch)
        if paths:
            yield from _scored(ray.data, setup, nproc, paths, bool(ray.cluster_resources().get("GPU")))
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        raise RunError(f"Ray stopped: {cause}; the same command goes on where this one stopped") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _scored(data: Any, setup: Setup, nproc: int, paths: list[str], gpu: bool) -> Iterator[list[Outcome]]:
    # Actors read their lists themselves: tasks of Ray that read would wait for ever where actors hold every CPU.
    found = data.from_items([{"path": path} for path in paths]).map_batches(
        Scorer, batch_size=1, batch_format="pyarrow", concurrency=nproc, num_gpus=int(gpu) or None,
        fn_constructor_args=(setup,),
    )  # fmt: skip
    for block in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield [Outcome(**row | {"components": json.loads(row["components"])}) for row in block.to_pylist()]


class Scorer:
    """An actor of Ray: the loaded rewards, and a table of paths of works → a table of outcomes."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.judges = setup.judges()

    def __call__(self, table: Any) -> Any:
        """Score the works of some files."""
        paths = table.column("path").to_pylist()
        works = [_work(row) for path in paths for row in pyarrow_parquet(path).read_table(path).to_pylist()]
        found = score_locally(works, self.judges, self.setup.batch, self.setup.threads)
        rows = [vars(o) | {"components": json.dumps(o.components)} for outcomes in found for o in outcomes]
        return type(table).from_pylist(rows, _outcome_schema())


def _outcome_schema() -> Any:
    import pyarrow

    kinds = {"score": pyarrow.float64()}
    return pyarrow.schema([(field.name, kinds.get(field.name, pyarrow.string())) for field in fields(Outcome)])


def _work_schema() -> Any:
    import pyarrow

    kinds = {"offset": pyarrow.int64(), "length": pyarrow.int64(), "data": pyarrow.binary()}
    kinds |= {"rewards": pyarrow.list_(pyarrow.string())}
    names = ("key", *_ITEM, "prompt", "columns", "rewards")
    return pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in names])


def _write_works(works: Iterable[Work], folder: Path, rows: int) -> list[str]:
    """Write the works as parquet files of so many rows; returns their paths."""
    parquet, source = pyarrow_parquet(folder), iter(works)
    import pyarrow

    paths: list[str] = []
    while chunk := list(islice(source, rows)):
        paths.append(str(folder / f"{len(paths):09d}.parquet"))
        parquet.write_table(pyarrow.Table.from_pylist([_row(work) for work in chunk], _work_schema()), paths[-1])
    return paths


def _row(work: Work) -> dict[str, Any]:
    own = {name: getattr(work.item, name) for name in _ITEM}
    return own | {
        "key": work.key, "prompt": work.prompt, "columns": canonical(work.columns), "rewards": list(work.rewards),
    }  # fmt: skip


def _work(row: dict[str, Any]) -> Work:
    item = Item(**{name: row[name] for name in _ITEM})
    return Work(row["key"], item, row["prompt"], json.loads(row["columns"]), tuple(row["rewards"]))
