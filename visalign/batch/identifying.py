"""What decides a file's score, as one key: its content, its prompt and its columns."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from visalign.batch.captions import Captions, own_prompt
from visalign.batch.decoding import kind_of
from visalign.batch.item import Item, Unscorable
from visalign.batch.judging import Work
from visalign.batch.ledger import Ledger

READERS = 4
"""Threads that read and hash."""
CHUNK = 16
"""Files that one task of a thread reads."""


@dataclass(frozen=True)
class Identified:
    """A file that was read once.

    Attributes:
        item: the file; its error says why it cannot be scored.
        content: hash of its bytes; empty with an error.
        prompt: its own prompt, or None.
    """

    item: Item
    content: str
    prompt: str | None


def identify(item: Item) -> Identified:
    """Read one file: what it is, the hash of its bytes, its own prompt."""
    try:
        if item.error:
            raise Unscorable(item.error)
        kind = kind_of(item)
        prompt = item.prompt or own_prompt(item, kind == "png")
        return Identified(item, item.content_hash(), prompt)
    except Unscorable as error:
        return Identified(replace(item, error=str(error)), "", item.prompt)


def identified(items: Iterable[Item], threads: int) -> Iterator[Identified]:
    """Every item, identified, in order; threads read ahead."""
    source, queue = iter(items), deque[Future[list[Identified]]]()
    pool = ThreadPoolExecutor(threads, "visalign-read")
    try:
        while chunk := list(islice(source, CHUNK)):
            queue.append(pool.submit(_identify_all, chunk))
            if len(queue) > 2 * threads:
                yield from queue.popleft().result()
        for future in queue:
            yield from future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _identify_all(chunk: Sequence[Item]) -> list[Identified]:
    return [identify(item) for item in chunk]


def works(
    items: Iterable[Item], captions: Captions, roots: Sequence[str], ledger: Ledger
) -> Generator[Work, None, None]:
    """Note every file in the ledger, and give the contents that some reward has not judged, once each."""
    for found in identified((captions.by_file(item, roots) for item in items), READERS):
        own = found.prompt if found.prompt is not None else captions.fallback
        prompt = None if own is None else own.encode(errors="backslashreplace").decode()  # half surrogate pairs
        columns = captions.columns(prompt, found.item.columns)
        text = canonical(columns)
        if not found.content:
            ledger.add_file(found.item.name, prompt, text, "", found.item.error)
            continue
        key = key_of(found.content, prompt, text)
        ledger.add_file(found.item.name, prompt, text, key)
        if left := ledger.claim(key):
            yield Work(key, found.item, prompt, columns, left)


def canonical(columns: Mapping[str, Any]) -> str:
    """Columns as JSON that does not depend on their order; bytes by their hash.

    Example:
        >>> canonical({"b": 1, "a": "x"}) == canonical({"a": "x", "b": 1})
        True
    """
    return json.dumps(columns, sort_keys=True, default=_plain)


def _plain(value: Any) -> str:
    return f"sha256:{hashlib.sha256(value).hexdigest()}" if isinstance(value, bytes) else str(value)


def key_of(content: str, prompt: str | None, columns: str) -> str:
    """What decides the score of a content, hashed, 40 hexadecimal digits; no prompt is another key than an empty one.

    Example:
        >>> key_of("c", "a cat", "{}") == key_of("c", "a dog", "{}")
        False
    """
    return hashlib.sha256(json.dumps([content, prompt, columns]).encode()).hexdigest()[:40]
