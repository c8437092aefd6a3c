"""Where media come from: folders, globs, tables and archives, as one stream that is flat in memory.

A folder is walked in order of names; hidden entries and files that are no media are passed over, and links are
followed. A table names files relative to itself, or holds encoded bytes. An archive is a webdataset: members of one
stem are a sample, whose `.txt` is the prompt and whose `.json` are the columns.
"""

from __future__ import annotations

import glob
import json
import os
import sqlite3
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from visalign.batch.item import MEDIA, Item, printable, why
from visalign.batch.tables import TABLES, stream_rows
from visalign.data import MEDIA_COLUMNS
from visalign.prompts import TEXT_COLUMNS, pick_column
from visalign.types import InputError

FILE_COLUMNS = (*MEDIA_COLUMNS, "file", "path")
ARCHIVES = (".tar", ".tar.gz", ".tgz")
_MAX_TEXT = 2**20
_MAX_HELD = 2**27  # bytes of a member of a compressed archive, which is read into memory
Identity = tuple[int, int]


def items(paths: Sequence[str]) -> Iterator[Item]:
    """Every medium at some paths, in a fixed order.

    Args:
        paths: folders, files, globs (`photos/**/*.png`), tables (jsonl, csv, parquet) and webdataset tars.

    Raises:
        InputError: a path or pattern is nothing, or a table cannot be read.

    Example:
        >>> next(items(["no_such_folder"]))
        Traceback (most recent call last):
        visalign.types.InputError: 'no_such_folder' does not exist; give folders, files, globs, tables or tars
    """
    for path in paths:
        yield from _of_path(path)


def check_paths(paths: Sequence[str]) -> None:
    """Refuse paths that are nothing, before anything is spent.

    Raises:
        InputError: there are none, or one does not exist.
    """
    if not paths:
        raise InputError("give what to score: folders, files, globs, tables or tars")
    for path in paths:
        if not (_is_glob(path) or os.path.lexists(path)):
            raise InputError(f"{path!r} does not exist; give folders, files, globs, tables or tars")


def pick(paths: Sequence[str], rows: Mapping[int, str]) -> Iterator[tuple[int, Item]]:
    """The items of some rows again, with their row; those that are called otherwise by now are left out.

    Args:
        paths: as they were given to `items`.
        rows: row → name.
    """
    left = len(rows)
    for row, item in enumerate(items(paths)):
        if rows.get(row) == item.name:
            yield row, item
            left -= 1
        if left == 0:
            return


def _is_glob(path: str) -> bool:
    return glob.has_magic(path) and not os.path.lexists(path)


def _of_path(path: str) -> Iterator[Item]:
    check_paths([path])
    if _is_glob(path):
        return _glob(path)
    if os.path.isdir(path):
        return _walk(path, frozenset({_identity(os.stat(path))}))
    return _of_file(path)


def _glob(pattern: str) -> Iterator[Item]:
    found = False
    for path in in_order(glob.iglob(pattern, recursive=True)):
        found = True
        if not os.path.isdir(path):
            yield from _of_file(path) if path.lower().endswith((*MEDIA, *TABLES, *ARCHIVES)) else ()
        elif "**" not in pattern:  # `**` matches what is in the folders by itself
            yield from _of_path(path)
    if not found:
        raise InputError(f"nothing matches {pattern!r} (seen from {str(Path.cwd())!r}); correct the pattern")


def _of_file(path: str) -> Iterator[Item]:
    if path.endswith(TABLES):
        return _table(Path(path))
    if path.endswith(ARCHIVES):
        return _archive(path)
    return iter([Item(printable(path), path)])


def in_order(names: Iterable[str]) -> Iterator[str]:
    """Names sorted by their bytes; sorted on disk where they are many.

    Example:
        >>> list(in_order(["b.png", "a.png"]))
        ['a.png', 'b.png']
    """
    with closing(sqlite3.connect("")) as spool:
        spool.execute("CREATE TABLE names (name BLOB)")
        spool.executemany("INSERT INTO names VALUES (?)", ((os.fsencode(name),) for name in names))
        for (name,) in spool.execute("SELECT name FROM names ORDER BY name"):
            yield os.fsdecode(name)


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def _walk(folder: str, above: frozenset[Identity]) -> Iterator[Item]:
    try:
        with os.scandir(folder) as entries:
            names = in_order(entry.name for entry in entries if not entry.name.startswith("."))
            first = list(islice(names, 1))  # reads the folder, and raises what is wrong with it
    except OSError as error:
        yield Item(printable(folder), folder, error=why(error))
        return
    for name in chain(first, names):
        yield from _entry(os.path.join(folder, name), above)


def _entry(path: str, above: frozenset[Identity]) -> Iterator[Item]:
    is_media = path.lower().endswith(MEDIA)
    try:
        found = os.stat(path)
    except OSError as error:
        reason = why(error)
        if is_media or reason.startswith("symlink loop"):
            yield Item(printable(path), path, error=reason)
        return
    if not stat.S_ISDIR(found.st_mode):
        yield from [Item(printable(path), path)] if is_media else []
    elif _identity(found) in above:
        yield Item(printable(path), path, error="symlink loop: it leads back to a folder above it")
    else:
        yield from _walk(path, above | {_identity(found)})


def _table(path: Path) -> Iterator[Item]:
    file_column, text_column = "", None
    for number, row in enumerate(stream_rows(path)):
        if number == 0:
            file_column = pick_column([row], FILE_COLUMNS, str(path))
            text_column = next((name for name in TEXT_COLUMNS if name in row), None)
        yield _of_row(row, file_column, text_column, path, number)


def _of_row(row: Mapping[str, Any], file_column: str, text_column: str | None, table: Path, number: int) -> Item:
    value, text = row.get(file_column), row.get(text_column) if text_column else None
    columns = {k: v for k, v in row.items() if k not in (file_column, text_column)}
    prompt = text.strip() if isinstance(text, str) and text.strip() else None
    name = f"{printable(str(table))}#{number + 1}"
    if isinstance(value, Mapping):  # a picture of the library `datasets`
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Item(name, data=value, prompt=prompt, columns=columns)
    if not isinstance(value, str) or not value:
        return Item(name, error=f"unreadable: the column {file_column!r} names no file", prompt=prompt, columns=columns)
    path = os.path.join(table.parent, value)
    return Item(printable(path), path, prompt=prompt, columns=columns)


def _archive(path: str) -> Iterator[Item]:
    plain = path.endswith(".tar")
    try:
        with tarfile.open(path, "r:" if plain else "r|*") as tar:
            for _, members in groupby(_members(tar, path, plain), key=lambda member: _key(member.name)):
                yield from _sample(list(members))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        yield Item(printable(path), path, error=f"truncated: the archive cannot be read to its end ({error})")


def _key(name: str) -> str:
    # The sample of a member: all before the first dot of its file's name.
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _members(tar: tarfile.TarFile, path: str, plain: bool) -> Iterator[Item]:
    """The regular members as items: media by their place in a plain archive, all else by bytes."""
    while (member := tar.next()) is not None:
        vars(tar)["members"].clear()  # tarfile would keep them all
        is_media = member.name.lower().endswith(MEDIA)
        if not member.isreg() or not (is_media or member.name.lower().endswith((".txt", ".json"))):
            continue
        name = printable(f"{path}/{member.name}")
        if plain and is_media and not member.issparse():
            yield Item(name, path, member.offset_data, member.size)
        elif member.size > (_MAX_HELD if is_media else _MAX_TEXT):
            yield Item(name, error=f"huge: {member.size} bytes in an archive")
        else:
            reader = tar.extractfile(member)
            assert reader is not None
            yield Item(name, data=reader.read())


def _sample(members: Sequence[Item]) -> Iterator[Item]:
    """The media of one sample; each has the text and json of its own stem, or else those of the sample."""
    media = [m for m in members if m.name.lower().endswith(MEDIA)]
    texts = {m.name: m.data or b"" for m in members if m not in media}
    for m in media:
        stems = (os.path.splitext(m.name)[0], _key(m.name))
        text, columns = (
            next((texts[s + end] for s in stems if s + end in texts), empty)
            for end, empty in ((".txt", b""), (".json", b"{}"))
        )
        try:
            prompt, rest = _annotation(text.decode("utf-8"), json.loads(columns))
        except ValueError as error:
            yield replace(m, error=m.error or f"corrupt: its text or json cannot be read ({error})")
        else:
            yield replace(m, prompt=prompt, columns=rest)


def _annotation(text: str, held: Any) -> tuple[str | None, dict[str, Any]]:
    """Prompt and columns of a sample; the text comes before a prompt in the json."""
    columns = held if isinstance(held, dict) else {"json": held}
    named = next((name for name in TEXT_COLUMNS if isinstance(columns.get(name), str)), None)
    prompt = text.strip() or (columns[named].strip() if named else "")
    return prompt or None, {k: v for k, v in columns.items() if k != named}
