"""What is scored: one file, a part of an archive, or encoded bytes; and why one cannot be scored."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from visalign.media_io import IMAGES, VIDEOS

MEDIA = (*IMAGES, *VIDEOS)
MAX_FILE = 512 * 2**20
"""Encoded bytes of an image, or of an archive's member, that are read into memory; larger ones are refused."""
_CHUNK = 2**20


class Unscorable(Exception):
    """A file cannot be scored; the text is `reason: detail`, and the rest goes on.

    The reasons: `empty`, `truncated`, `corrupt`, `huge`, `unreadable`, `wrong extension`, `symlink loop`,
    `unsupported`.
    """


@dataclass(frozen=True)
class Item:
    """One medium to score; holds no pixels, and bytes only where nothing else can give them again.

    Attributes:
        name: how it is called in the output, printable.
        path: the file that holds it; None for bytes.
        offset: where it begins in that file.
        length: its bytes; None is all of the file.
        data: encoded bytes from a table or a compressed archive.
        prompt: from a table or an archive; None where that gives none.
        columns: all else that its row held.
        error: why it cannot even be opened, known from the walk; empty for the others.
    """

    name: str
    path: str | None = None
    offset: int = 0
    length: int | None = None
    data: bytes | None = None
    prompt: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def suffix(self) -> str:
        """The ending that its name promises, in lower case; empty for bytes, which have none."""
        return "" if self.path is None else os.path.splitext(self.name)[1].lower()

    @property
    def is_whole_file(self) -> bool:
        """Whether the file holds this medium and nothing else."""
        return self.path is not None and self.length is None

    def size(self) -> int:
        """Encoded bytes.

        Raises:
            Unscorable: the file cannot be reached, or is no regular file.
        """
        if self.data is not None:
            return len(self.data)
        if self.length is not None:
            return self.length
        assert self.path is not None
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise Unscorable(why(error)) from None
        if not stat.S_ISREG(found.st_mode):
            raise Unscorable("unreadable: it is no regular file")
        return found.st_size

    def part(self, start: int, count: int) -> bytes:
        """`count` encoded bytes from `start`, or fewer at the end.

        Raises:
            Unscorable: the file cannot be read.
        """
        if self.data is not None:
            return self.data[start : start + count]
        assert self.path is not None
        room = count if self.length is None else min(count, max(0, self.length - start))
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset + start)
                return file.read(room)
        except OSError as error:
            raise Unscorable(why(error)) from None

    def content_hash(self) -> str:
        """SHA-256 of the encoded bytes, read in pieces.

        Raises:
            Unscorable: the file cannot be read, or an archive ends within it.
        """
        digest, size, read = hashlib.sha256(), self.size(), 0
        for piece in self.pieces(size):
            digest.update(piece)
            read += len(piece)
        if self.length is not None and read < size:
            raise Unscorable(f"truncated: the archive ends after {read} of its {size} bytes")
        return digest.hexdigest()

    def pieces(self, size: int) -> Iterator[bytes]:
        """Its `size` encoded bytes, one after the other."""
        if self.data is not None or size <= _CHUNK:
            yield self.part(0, size)
            return
        for start in range(0, size, _CHUNK):
            yield self.part(start, _CHUNK)


def why(error: OSError) -> str:
    """The reason behind an error of the file system.

    Example:
        >>> why(FileNotFoundError(2, "No such file or directory")), why(OSError(errno.ELOOP, "Too many links"))
        ('unreadable: No such file or directory', 'symlink loop: it leads back to itself')
    """
    if error.errno == errno.ELOOP:
        return "symlink loop: it leads back to itself"
    return f"unreadable: {error.strerror or type(error).__name__}"


def printable(path: str | bytes) -> str:
    r"""A path as text that can be written as UTF-8, whatever bytes the file system holds.

    Example:
        >>> printable("a/b.png"), printable(b"caf\xe9.png")
        ('a/b.png', 'caf\\xe9.png')
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")
