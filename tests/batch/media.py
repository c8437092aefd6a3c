"""Small real files for the tests of scoring: pictures, videos, archives, and everything that can be wrong with one."""

import io
import os
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

from visalign.media_io import encode_mp4


def picture(seed, size=24):
    """A picture that no other seed gives, and that is not the same size as a file."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def encoded(seed, form="PNG", size=24, **chunks):
    info = PngImagePlugin.PngInfo()
    for key, value in chunks.items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, form, **({"pnginfo": info} if form == "PNG" else {}))
    return buffer.getvalue()


def folder(path, count, size=24, start=0):
    """`count` different pictures; returns the folder."""
    path.mkdir(parents=True, exist_ok=True)
    for seed in range(start, start + count):
        (path / f"{seed:05d}.png").write_bytes(encoded(seed, size=size))
    return path


def clip(seed, frames=12, size=32):
    """An MP4 whose frames differ."""
    rng = np.random.default_rng(seed)
    return encode_mp4(rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8), 8.0, {})


def bomb(width, height):
    """A PNG of a few bytes that claims so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


def broken(path):
    """A folder with one good picture and every kind of bad file; returns name → reason."""
    path.mkdir(parents=True)
    whole, moving = encoded(0, size=64), clip(0)
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 40] = bytes(40)
    contents = {
        "good.png": (whole, ""),
        "cut.png": (whole[: len(whole) // 2], "truncated"),
        "cut.jpg": (encoded(1, "JPEG", 64)[:400], "truncated"),
        "cut.webp": (encoded(1, "WEBP", 64)[:400], "truncated"),
        "cut.mp4": (moving[: len(moving) // 2], "truncated"),
        "damaged.png": (bytes(damaged), "corrupt"),
        "zeros.jpg": (bytes(300), "corrupt"),
        "empty.png": (b"", "empty"),
        "bomb.png": (bomb(30_000, 30_000), "huge"),
        "large.png": (bomb(9_000, 9_000), "huge"),
        "png_inside.jpg": (whole, "wrong extension"),
        "picture.mp4": (whole, "wrong extension"),
        "text.png": (b"this is no picture\n" * 9, "wrong extension"),
        "playlist.mp4": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "wrong extension"),
    }
    for name, (data, _) in contents.items():
        (path / name).write_bytes(data)
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    deep.save(path / "deep.png")
    os.symlink("itself.png", path / "itself.png")
    os.symlink("nowhere.png", path / "dangling.png")
    os.symlink(path, path / "above")
    os.mkfifo(path / "pipe.png")
    reasons = {name: reason for name, (_, reason) in contents.items()}
    return reasons | {
        "deep.png": "unsupported", "itself.png": "symlink loop", "dangling.png": "unreadable",
        "above": "symlink loop", "pipe.png": "unreadable",
    }  # fmt: skip


def archive(path, members, mode="w"):
    """A tar of name → bytes."""
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def scored(table):
    """Name of the file without its folders → score of the first reward, None where there is none."""
    return {f.file.rpartition("/")[2]: f.values.get(table.rewards[0]) for f in table.files()}
