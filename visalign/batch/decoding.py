"""From encoded bytes to pixels, with a reason for everything that can be wrong with a file.

What a file is, is read from its first bytes, never from its name; only the decoders of that kind see it, so that a
playlist in a `.mp4` opens no other file.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Sequence

import av
import numpy as np
import torch
from PIL import Image, ImageOps

from visalign.batch.item import MAX_FILE, MEDIA, Item, Unscorable
from visalign.data import MAX_PIXELS
from visalign.types import Media

MAX_VIDEO_PIXELS = 4 * MAX_PIXELS
"""A video with more pixels than this in its judged frames is refused."""
HEAD = 512
_MAX_BOXES = 10_000

_MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", "png"), (0, b"\xff\xd8\xff", "jpeg"), (0, b"GIF8", "gif"), (0, b"BM", "bmp"),
    (0, b"II*\x00", "tiff"), (0, b"MM\x00*", "tiff"), (0, b"II+\x00", "tiff"), (8, b"WEBP", "webp"),
    (8, b"AVI ", "avi"), (4, b"ftypavi", "avif"), (4, b"ftyphei", "heif"), (4, b"ftypmif1", "heif"),
    (4, b"ftyp", "mp4"), (4, b"moov", "mp4"), (4, b"mdat", "mp4"), (4, b"wide", "mp4"), (4, b"free", "mp4"),
    (0, b"\x1aE\xdf\xa3", "mkv"),
)  # fmt: skip
_PILLOW = {"png": "PNG", "jpeg": "JPEG", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF", "webp": "WEBP"}
_FFMPEG = {"mp4": "mov", "mkv": "matroska", "avi": "avi"}
_OF_SUFFIX = {
    ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".mov": "mp4", ".webm": "mkv",
    **{f".{kind}": kind for kind in ("png", "gif", "bmp", "tiff", "webp", "mp4", "mkv", "avi")},
}  # fmt: skip


def kind_of(item: Item) -> str:
    """What a medium is: `png`, `jpeg`, …, `mp4`, `mkv` or `avi`.

    Raises:
        Unscorable: it is empty, unreadable, of no known kind, or of another kind than its name says.

    Example:
        >>> kind_of(Item("row 3", data=b"GIF89a..."))
        'gif'
    """
    if item.suffix and item.suffix not in MEDIA:
        raise Unscorable(f"wrong extension: {item.suffix} is none of {', '.join(MEDIA)}")
    if item.size() == 0:
        raise Unscorable("empty: it has no bytes")
    kind = sniff(item.part(0, HEAD))
    expected = _OF_SUFFIX.get(item.suffix, kind)
    if kind == "":
        raise Unscorable(f"corrupt: it does not begin like {f'a {expected} file' if expected else 'any known kind'}")
    if kind != expected:
        raise Unscorable(f"wrong extension: it is {kind}, but its name ends in {item.suffix}")
    if kind not in _PILLOW and kind not in _FFMPEG:
        raise Unscorable(f"unsupported: it is {kind}; convert it")
    return kind


def sniff(head: bytes) -> str:
    """The kind of a file that begins so; `text` for plain text, empty where it is none that is known.

    Example:
        >>> sniff(b"GIF89a"), sniff(b"hello, world"), sniff(bytes(8))
        ('gif', 'text', '')
    """
    for start, magic, kind in _MAGIC:
        if head[start : start + len(magic)] == magic:
            return kind
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # a character may be cut in two at the end
    except UnicodeDecodeError:
        return ""
    return "text" if all(c.isprintable() or c.isspace() for c in text) else ""


def is_video(kind: str) -> bool:
    """Whether a kind moves."""
    return kind in _FFMPEG


def decode(item: Item, frames: Callable[[int], Sequence[int]]) -> Media:
    """The pixels of one medium.

    Args:
        item: what to decode.
        frames: which of a video's so many frames are wanted; an animated image gives its first.

    Returns:
        One row, (1, F, 3, H, W) in [0, 1] float32.

    Raises:
        Unscorable: with the reason.
    """
    kind = kind_of(item)
    try:
        pictures, fps = _video(item, kind, frames) if is_video(kind) else (_image(item, kind), 0.0)
    except Unscorable:
        raise
    except (Image.DecompressionBombError, MemoryError):
        raise Unscorable(_too_many_pixels()) from None
    except Exception as error:  # a decoder may raise anything at a damaged file
        raise Unscorable(_damage(item, kind, error)) from None
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div_(255)  # (F, 3, H, W)
    return Media(pixels.unsqueeze(0), fps)


def _too_many_pixels() -> str:
    return f"huge: more than {MAX_PIXELS // 10**6} million pixels; it is not decoded"


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Unscorable(_too_many_pixels())


def _damage(item: Item, kind: str, error: Exception) -> str:
    said = re.sub(r"\s*<[^>]*>|\[Errno \d+\] |: '[^']*'$", "", str(error)) or type(error).__name__
    return f"{'truncated' if 'truncated' in said.lower() or is_cut(item, kind) else 'corrupt'}: {said}"


def _image(item: Item, kind: str) -> list[np.ndarray]:
    if item.size() > MAX_FILE:
        raise Unscorable(f"huge: {item.size()} bytes of an encoded image; it is not read")
    with Image.open(io.BytesIO(item.part(0, item.size())), formats=[_PILLOW[kind]]) as image:
        _check_size(image.width, image.height)
        if image.mode[0] in "IF":  # pillow would clip these to white
            raise Unscorable("unsupported: more than 8 bits a channel; save it with 8")
        return [np.asarray(ImageOps.exif_transpose(image).convert("RGB"))]


def _video(item: Item, kind: str, frames: Callable[[int], Sequence[int]]) -> tuple[list[np.ndarray], float]:
    if is_cut(item, kind):
        raise Unscorable("truncated: its container is longer than the file")
    if not item.is_whole_file and item.size() > MAX_FILE:
        raise Unscorable(f"huge: {item.size()} bytes of video in an archive; put it into a file")
    source = item.path if item.is_whole_file else io.BytesIO(item.part(0, item.size()))
    packets = max(1, _packets(source, kind))
    pictures, seen, fps = _frames(source, kind, frames(packets))
    if seen not in (0, packets):  # packets are nearly always frames; where they are not, choose again
        pictures, seen, fps = _frames(source, kind, frames(seen))
    if not pictures:
        raise Unscorable("corrupt: no frame can be decoded")
    return pictures, fps


def _open(source: str | io.BytesIO | None, kind: str) -> av.container.InputContainer:
    if isinstance(source, io.BytesIO):
        source.seek(0)
    assert source is not None
    return av.open(source, "r", format=_FFMPEG[kind])


def _packets(source: str | io.BytesIO | None, kind: str) -> int:
    with _open(source, kind) as container:
        return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)


def _frames(source: str | io.BytesIO | None, kind: str, wanted: Sequence[int]) -> tuple[list[np.ndarray], int, float]:
    """The wanted frames, how many there are in all, and frames a second."""
    chosen, pictures, seen, last = set(wanted), [], 0, 0.0
    with _open(source, kind) as container:
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        _check_size(width, height)
        if width * height * len(chosen) > MAX_VIDEO_PIXELS:
            raise Unscorable(f"huge: {len(chosen)} frames of {width}×{height}; it is not decoded")
        for frame in container.decode(stream):
            _check_size(frame.width, frame.height)
            if seen in chosen:
                pictures.append(frame.to_ndarray(format="rgb24"))
            seen, last = seen + 1, frame.time or 0.0
        rate = float(stream.average_rate or 0)
        if seen and last + 2 / (rate or 1.0) < _seconds(stream.metadata.get("DURATION", "")):
            raise Unscorable(f"truncated: it ends after {last:.1f} seconds, before its stated end")
    return pictures, seen, rate


def _seconds(text: str) -> float:
    # Matroska's tag, as in 00:01:02.5; 0 where there is none.
    parts = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", text)
    return sum(float(v) * unit for v, unit in zip(parts.groups(), (3600, 60, 1), strict=True)) if parts else 0.0


def is_cut(item: Item, kind: str) -> bool:
    """Whether a container says that it is longer than its file; False for kinds that do not say.

    Example:
        >>> is_cut(Item("a", data=b"RIFF" + (100).to_bytes(4, "little") + b"WEBPVP8 "), "webp")
        True
    """
    if kind in ("webp", "avi"):
        return int.from_bytes(item.part(4, 4), "little") + 8 > item.size()
    return kind == "mp4" and _is_cut_mp4(item)


def _is_cut_mp4(item: Item) -> bool:
    size, place = item.size(), 0
    for _ in range(_MAX_BOXES):
        if place + 8 > size:
            break
        head = item.part(place, 16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0 is to the end of the file; less is damage of another kind
            return False
        place += length
    return place > size
