"""Where the subject of a picture is: everywhere, in the boxes of a column, or where OpenCV's YuNet finds a face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from visalign.rewards.base import Weights
from visalign.rewards.optional import optional
from visalign.rewards.pil import to_pil
from visalign.rewards.weights import fetch
from visalign.types import InputError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

YUNET = Weights("pollen-robotics/face_detection_yunet_2026may", "face_detection_yunet_2026may.onnx", "MIT")
"""The variant with dynamic sides, which OpenCV 5 needs; the weights are those of 2023mar."""


def cut(image: Tensor, box: Box, margin: float) -> Tensor:
    """A region (3, h, w) of an image (3, H, W), widened by a share of its sides and kept inside; gradients pass.

    Example:
        >>> import torch
        >>> cut(torch.rand(3, 40, 60), (10, 10, 30, 20), 0.1).shape
        torch.Size([3, 12, 24])
    """
    left, top, right, bottom = box
    wide, high = margin * (right - left), margin * (bottom - top)
    rows = _inside(top - high, bottom + high, image.shape[1])
    return image[:, rows, _inside(left - wide, right + wide, image.shape[2])]


def _inside(start: float, stop: float, size: int) -> slice:
    """At least one pixel, within the picture."""
    first = min(max(0, round(start)), size - 1)
    return slice(first, min(size, max(round(stop), first + 1)))


class Finder(Protocol):
    """Finds the subject's regions."""

    def frame(self, image: Tensor, columns: Mapping[str, Any], index: int) -> list[Box]:
        """Regions of frame `index` (3, H, W) of a row with these columns; none where nobody is."""

    def reference(self, picture: Tensor) -> list[Box]:
        """The subject's region of a reference (3, H, W), or none."""


class Everywhere:
    """The whole picture."""

    def frame(self, image: Tensor, columns: Mapping[str, Any], index: int) -> list[Box]:
        """One region: all of it."""
        return self.reference(image)

    def reference(self, picture: Tensor) -> list[Box]:
        """One region: all of it."""
        return [(0, 0, picture.shape[2], picture.shape[1])]


class BoxColumn(Everywhere):
    """Boxes that come with the prompt, in [0, 1]: one for all frames, or one, or None, for each; references are crops.

    Args:
        column: where they are.
    """

    def __init__(self, column: str) -> None:
        self.column = column

    def frame(self, image: Tensor, columns: Mapping[str, Any], index: int) -> list[Box]:
        """The box of the frame, or none.

        Raises:
            InputError: the row does not have the column, or not so many boxes.
        """
        if self.column not in columns:
            raise InputError(
                f"there is no column {self.column!r} among {', '.join(columns) or 'none'}; give boxes there"
            )
        held = columns[self.column]
        each = held if held and isinstance(held[0], list | tuple | None) else [held] * (index + 1)
        if index >= len(each):
            raise InputError(f"column {self.column!r} has {len(each)} boxes; give one for each frame, or one for all")
        height, width = image.shape[1:]
        return [(b[0] * width, b[1] * height, b[2] * width, b[3] * height) for b in (each[index],) if b is not None]


class YuNet:
    """OpenCV's face detector (doi 10.1007/s11633-023-1423-y), for faces of about 10 to 300 pixels.

    Args:
        detector: `yunet` downloads the file once; else the path of one.
        reward: who asks, for the message.

    Raises:
        InputError: OpenCV is not installed, or the file is not at hand or is no such detector.
    """

    def __init__(self, detector: str, reward: str) -> None:
        cv2 = optional("cv2", "cv", reward)
        path = fetch(YUNET, None if detector == "yunet" else detector)
        try:
            self.detector: Any = cv2.FaceDetectorYN.create(str(path), "", (320, 320))
        except cv2.error as error:
            raise InputError(
                f"{detector!r} is no YuNet that OpenCV {cv2.__version__} reads; give {YUNET.file}"
            ) from error

    def frame(self, image: Tensor, columns: Mapping[str, Any], index: int) -> list[Box]:
        """Faces, likeliest first; without gradients."""
        (picture,) = to_pil(image[None])
        self.detector.setInputSize(picture.size)
        _, faces = self.detector.detect(np.ascontiguousarray(np.asarray(picture)[:, :, ::-1]))
        rows = [] if faces is None else sorted(faces.tolist(), key=lambda face: -face[-1])
        return [(x, y, x + width, y + height) for x, y, width, height, *_ in rows]

    def reference(self, picture: Tensor) -> list[Box]:
        """The likeliest face, or none."""
        return self.frame(picture, {}, 0)[:1]
