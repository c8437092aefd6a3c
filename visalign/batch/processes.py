"""Scoring in several processes of this machine, one a GPU: the same outcomes, in chunks.

One process reads the sources, hands out contents and keeps the journal, so identical files are scored once whichever
process gets them, and a killed run goes on with any number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from itertools import islice
from multiprocessing.queues import Queue

import torch

from visalign.batch.engine import Setup, score_locally
from visalign.batch.judging import Judge, Outcome, Work
from visalign.types import RunError

CHUNK = 8
"""Batches of one task; a process waits for its next files only between tasks."""

_own: list[tuple[Setup, int]] = []


def score_in_processes(works: Iterable[Work], setup: Setup, nproc: int) -> Iterator[list[Outcome]]:
    """The outcomes of all works, a task at a time.

    Args:
        works: taken as they are needed, from the caller's thread.
        setup: rewards, batch, threads of each process, device.
        nproc: number of processes.

    Raises:
        InputError: a reward is unknown or does not take its params.
        RunError: a reward raised, or a process died.
    """
    context = multiprocessing.get_context("spawn")
    ranks = context.Queue()
    for rank in range(nproc):
        ranks.put(rank)
    pool = ProcessPoolExecutor(nproc, context, _start, (setup, ranks, nproc))
    try:
        yield from _collect(works, pool, CHUNK * setup.batch, 2 * nproc)
    except BrokenProcessPool:
        raise RunError("a scoring process died; the same command goes on where this one stopped") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(works: Iterable[Work], pool: ProcessPoolExecutor, size: int, ahead: int) -> Iterator[list[Outcome]]:
    source, running = iter(works), set[Future[list[Outcome]]]()
    while chunk := list(islice(source, size)):
        running.add(pool.submit(_score, chunk))
        while len(running) >= ahead:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def _start(setup: Setup, ranks: Queue[int], nproc: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _own.append((setup, ranks.get()))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // nproc))


def _end_with_parent() -> None:
    # A killed parent cannot stop its processes, and theirs would be scored again by the next run.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@cache
def _judges() -> dict[str, Judge]:
    setup, rank = _own[0]
    return setup.judges(rank)


def _score(works: list[Work]) -> list[Outcome]:
    setup = _own[0][0]
    return [o for found in score_locally(works, _judges(), setup.batch, setup.threads) for o in found]
