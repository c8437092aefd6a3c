"""Scoring in this process: files are decoded and prepared by threads while the model works on the batch before.

Media that share reward, shape and rate share a batch. What is held at once is bounded in number and in bytes, so
memory does not grow with the number of files.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from visalign.batch.decoding import decode
from visalign.batch.item import Unscorable
from visalign.batch.judging import Asked, Judge, Outcome, Work, judged_frames
from visalign.media_io import VIDEOS
from visalign.types import Media

AHEAD = 2
"""Batches that are decoded ahead of the model."""
WAITING = 4
"""Batches of a reward that may wait for others of their shape."""
MAX_HELD = 2**30
"""Bytes of prepared media that may wait."""
VIDEO_WEIGHT = 8
"""A video counts as so many images in what is decoded ahead."""

Shape = tuple[str, tuple[int, ...], float]


@dataclass(frozen=True)
class Setup:
    """What a process needs to score.

    Attributes:
        rewards: name → params.
        batch: rows of one call of a reward.
        workers: threads that decode.
        device: where rewards work; `auto` is the GPU where there is one.
    """

    rewards: Asked
    batch: int = 32
    workers: int = 0
    device: str = "auto"

    def judges(self, rank: int = 0) -> dict[str, Judge]:
        """The rewards, loaded; process `rank` takes the GPU of that number.

        Raises:
            InputError: a reward is unknown, or does not take its params.
        """
        chosen = self.device
        if chosen == "auto":
            chosen = f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
        return {name: Judge(name, params, torch.device(chosen)) for name, params in self.rewards.items()}

    @property
    def threads(self) -> int:
        """Threads that decode: as asked for, or one a core, at most 16."""
        return self.workers or min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Ready:
    """One medium as one reward wants it."""

    work: Work
    judge: Judge
    media: Media

    @property
    def shape(self) -> Shape:
        """What it must share with the others of a batch."""
        return self.judge.name, tuple(self.media.pixels.shape), self.media.fps

    @property
    def bytes(self) -> int:
        """Its pixels' memory."""
        return self.media.pixels.numel() * self.media.pixels.element_size()


class Buckets:
    """Media that wait for others of their shape.

    Args:
        batch: rows of a full bucket.
        limit: how many may wait in all.
    """

    def __init__(self, batch: int, limit: int) -> None:
        self.batch, self.limit = batch, limit
        self.waiting: dict[Shape, list[Ready]] = {}
        self.count = self.bytes = 0

    def add(self, ready: Ready) -> Iterator[list[Ready]]:
        """Put one in; gives the batches that are due."""
        bucket = self.waiting.setdefault(ready.shape, [])
        bucket.append(ready)
        self.count, self.bytes = self.count + 1, self.bytes + ready.bytes
        if len(bucket) == self.batch:
            yield self._take(ready.shape)
        while self.count > self.limit or self.bytes > MAX_HELD:
            yield self._take(max(self.waiting, key=lambda shape: len(self.waiting[shape])))

    def rest(self) -> Iterator[list[Ready]]:
        """All that wait."""
        for shape in list(self.waiting):
            yield self._take(shape)

    def _take(self, shape: Shape) -> list[Ready]:
        taken = self.waiting.pop(shape)
        self.count, self.bytes = self.count - len(taken), self.bytes - sum(r.bytes for r in taken)
        return taken


def score_locally(works: Iterable[Work], judges: dict[str, Judge], batch: int, workers: int) -> Iterator[list[Outcome]]:
    """The outcomes of all works, in the order in which batches are done.

    Args:
        works: what to score; taken as it is needed, from the caller's thread.
        judges: the loaded rewards by name.
        batch: rows of one call of a reward.
        workers: threads that decode.

    Raises:
        InputError: a column does not fit a reward.
        RunError: a reward raised.
    """
    buckets = Buckets(batch, WAITING * batch * len(judges))
    with decoders(workers) as pool:
        for failed, prepared in _in_order(works, partial(prepare, judges=judges), pool, AHEAD * batch):
            if failed:
                yield failed
            for ready in prepared:
                for due in buckets.add(ready):
                    yield score_batch(due)
        for due in buckets.rest():
            yield score_batch(due)


@contextmanager
def decoders(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that decode, each with one thread of torch's own, so that they do not crowd out the model."""
    pool = ThreadPoolExecutor(workers, "visalign-decode", _one_thread)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(torch.get_num_threads())  # later threads take this one's number again


def _one_thread() -> None:
    torch.get_num_threads()  # reading sets this thread up; without it the number is reset at first use
    torch.set_num_threads(1)


def _in_order(
    works: Iterable[Work],
    task: Callable[[Work], tuple[list[Outcome], list[Ready]]],
    pool: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[tuple[list[Outcome], list[Ready]]]:
    """The tasks' results in the order of the works, `ahead` images being under way."""
    queue: deque[tuple[int, Future[tuple[list[Outcome], list[Ready]]]]] = deque()
    weight = 0
    for work in works:
        cost = VIDEO_WEIGHT if work.item.name.lower().endswith(VIDEOS) else 1
        queue.append((cost, pool.submit(task, work)))
        weight += cost
        while weight > ahead:
            cost, future = queue.popleft()
            weight -= cost
            yield future.result()
    for _, future in queue:
        yield future.result()


def prepare(work: Work, judges: dict[str, Judge]) -> tuple[list[Outcome], list[Ready]]:
    """Decode one work and prepare it for each of its rewards; what cannot be judged is an outcome already."""
    lacking = {name: judges[name].lacks(work.prompt, work.columns) for name in work.rewards}
    failed = [_failure(work, name, reason) for name, reason in lacking.items() if reason]
    able = [judges[name] for name, reason in lacking.items() if not reason]
    if not able:
        return failed, []
    try:
        media = decode(work.item, judged_frames(able))
    except Unscorable as error:
        return [*failed, *(_failure(work, judge.name, str(error)) for judge in able)], []
    refused = {judge.name: judge.refuses(media) for judge in able}
    failed += [_failure(work, name, reason) for name, reason in refused.items() if reason]
    return failed, [Ready(work, judge, judge.prepare(media)) for judge in able if not refused[judge.name]]


def _failure(work: Work, reward: str, reason: str) -> Outcome:
    return Outcome(work.key, reward, error=reason, file=work.item.name)


def score_batch(batch: Sequence[Ready]) -> list[Outcome]:
    """The outcomes of one batch: media of one shape for one reward."""
    media = Media(torch.cat([ready.media.pixels for ready in batch]), batch[0].media.fps)
    return batch[0].judge.score(media, [ready.work for ready in batch])
