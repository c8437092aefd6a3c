"""Read and write images and videos; what made them stands in the file: PNG text chunks, MP4 metadata.

Files are written under a temporary name and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from visalign.types import InputError, Media

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")
_FPS = 8.0  # of several frames without a rate
_KEY = "comment"  # the one free text that every MP4 reader keeps


def write_media(stem: Path, media: Media, metadata: Mapping[str, Any]) -> Path:
    """Write one image as PNG or one video as MP4 (H.264).

    Args:
        stem: the path without its ending; its folder must exist.
        media: one row.
        metadata: what made it, any JSON values; in a PNG one text chunk each, in an MP4 one JSON comment.

    Returns:
        The path written.

    Raises:
        InputError: more than one row came.
    """
    if len(media) != 1:
        raise InputError(f"one file holds one sample, but {len(media)} came; write them one by one")
    video = media.fps > 0 or media.pixels.shape[1] > 1
    path = stem.with_name(stem.name + (".mp4" if video else ".png"))
    temporary = path.with_name(f".{path.name}.tmp")
    frames = to_uint8(media.pixels[0])
    temporary.write_bytes(encode_mp4(frames, media.fps or _FPS, metadata) if video else encode_png(frames[0], metadata))
    os.replace(temporary, path)
    return path


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Frames (F, C, H, W) in [0, 1] as (F, H, W, 3) uint8, rounded; grey is repeated to three channels."""
    rounded = (pixels.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    rounded = rounded.expand(-1, 3, -1, -1) if rounded.shape[1] == 1 else rounded[:, :3]
    return rounded.permute(0, 2, 3, 1).contiguous().numpy()


def encode_png(image: np.ndarray, metadata: Mapping[str, Any]) -> bytes:
    """An image (H, W, 3) uint8 as PNG with one text chunk an entry."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        chunks.add_itxt(key, _text(value))
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def encode_mp4(frames: np.ndarray, fps: float, metadata: Mapping[str, Any]) -> bytes:
    """Frames (F, H, W, 3) uint8 as MP4 (H.264, yuv420p); odd sizes lose their last row or column."""
    height, width = (n - n % 2 for n in frames.shape[1:3])
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata[_KEY] = json.dumps(dict(metadata), ensure_ascii=False)
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


def read_media(path: Path) -> Media:
    """One image or video file.

    Raises:
        InputError: the file is missing, of an unknown kind, or torn.
    """
    if path.suffix.lower() not in VIDEOS:
        return _image(path)
    pixels, fps, _ = _frames(path)
    return Media(pixels.unsqueeze(0), fps)


def read_metadata(path: Path) -> dict[str, Any]:
    """What `write_media` put into a file; other PNGs give their text chunks, other videos their comment if it is JSON.

    Raises:
        InputError: the file is missing, of an unknown kind, or torn.
    """
    if path.suffix.lower() in VIDEOS:
        return _json_or_text(_frames(path)[2])
    with _open_image(path) as image:
        return {str(k): _value(v) for k, v in image.info.items() if isinstance(v, str)}


def _json_or_text(comment: str) -> dict[str, Any]:
    value = _value(comment)
    return value if isinstance(value, dict) else {_KEY: comment} if comment else {}


def _text(value: Any) -> str:
    # A text stands as it is, unless it would be read back as another JSON value ("7").
    plain = isinstance(value, str) and _value(value) is value
    return value if plain else json.dumps(value, ensure_ascii=False)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _image(path: Path) -> Media:
    with _open_image(path) as image:
        array = np.array(image.convert("RGB"))
    return Media.of_images(torch.from_numpy(array).permute(2, 0, 1).float().div(255).unsqueeze(0))


def _open_image(path: Path) -> Image.Image:
    _check(path, (*IMAGES, *VIDEOS))
    try:
        image = Image.open(path)
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{str(path)!r} is not a whole image: {error}") from None
    return image


def _frames(path: Path) -> tuple[Tensor, float, str]:
    # Pixels (F, 3, H, W), frames a second, and the comment.
    _check(path, VIDEOS)
    try:
        with av.open(str(path)) as container:
            rate, comment = container.streams.video[0].average_rate, container.metadata.get(_KEY, "")
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.error.FFmpegError, IndexError) as error:
        raise InputError(f"{str(path)!r} is not a whole video: {error}") from None
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float().div(255)
    return pixels, float(rate or 0), comment


def _check(path: Path, known: Sequence[str]) -> None:
    if not path.is_file():
        raise InputError(f"{str(path)!r} does not exist (seen from {str(Path.cwd())!r}); give the path of a file")
    if path.suffix.lower() not in known:
        raise InputError(f"{str(path)!r} ends in none of {', '.join(known)}")
