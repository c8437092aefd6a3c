"""The OCR reward of Flow-GRPO (2505.05470): does the picture spell what the prompt puts in quotes?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.optional import optional
from visalign.rewards.pil import to_pil
from visalign.types import InputError, Media, Prompts, Scores

QUOTED = re.compile(r'["“„]([^"“”„]*)["”“]')


def plain(text: str) -> str:
    """A text without spaces, case and typographic variants.

    Example:
        >>> plain("Open Ｎow")
        'opennow'
    """
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def targets(text: str, columns: Mapping[str, Any]) -> tuple[str, ...]:
    """What has to be spelt, plain: the column `target_text` (a text or a list), else all quoted spans of the prompt.

    Example:
        >>> targets('a door with "Push" and “pull”', {})
        ('push', 'pull')
    """
    given = columns.get("target_text") or QUOTED.findall(text)
    spans = [given] if isinstance(given, str) else given
    return tuple(p for p in map(plain, spans) if p)


def levenshtein(first: str, second: str) -> int:
    """The least number of insertions, deletions and replacements between two texts.

    Example:
        >>> levenshtein("kitten", "sitting")
        3
    """
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def likeness(found: str, target: str) -> float:
    """1 where the target is part of what was found, else 1 − distance / length of the target, at least 0.

    Example:
        >>> likeness("openclosed", "open"), likeness("opan", "open"), likeness("", "open")
        (1.0, 0.75, 0.0)
    """
    return 1.0 if target in found else max(0.0, 1 - levenshtein(found, target) / len(target))


def spelling(lines: Sequence[str], wanted: Sequence[str], over_length: float = 0.0) -> float:
    """How well plain lines spell the wanted texts, in [0, 1].

    Each target takes its best likeness to all that was read or to one line; the mean weighs targets by their length.

    Args:
        lines: what was read, in reading order.
        wanted: one target or more.
        over_length: taken off for each character beyond the targets, as a share of their length.

    Example:
        >>> spelling(["stop", "stop", "stop"], ["stop"], over_length=0.25)
        0.5
    """
    whole, total = "".join(lines), sum(map(len, wanted))
    credit = sum(len(t) * max(likeness(found, t) for found in (whole, *lines)) for t in wanted) / total
    return max(0.0, credit - over_length * max(0, len(whole) - total) / total)


class OCR(Reward):
    """What RapidOCR reads against the target, in [0, 1]; a picture without text has 0, a prompt without target none.

    With one target that is read as one line it is Flow-GRPO's number. Extra text costs nothing there, which can be
    played by repeating; `over_length` charges for it.

    Args:
        model: a RapidOCR configuration (YAML) with other models or languages; None takes the ones in its package.
        over_length: taken off for each character too many, as a share of the target's length.

    Raises:
        InputError: rapidocr or onnxruntime is not installed, or the configuration does not exist.
    """

    spec = RewardSpec(
        name="ocr",
        inputs=("prompt",),
        range=(0.0, 1.0),
        weights=(
            Weights("rapidocr", "models/PP-OCRv6_det_small.onnx", "Apache-2.0"),
            Weights("rapidocr", "models/PP-OCRv6_rec_small.onnx", "Apache-2.0"),
            Weights("rapidocr", "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", "Apache-2.0"),
        ),
        memory_gb=0.1,
        paper="2505.05470",
        extra="ocr",
    )

    def __init__(self, model: str | None = None, over_length: float = 0.0) -> None:
        if over_length < 0:
            raise InputError(f"ocr takes over_length from 0 on, but {over_length} came; write for example 0.5")
        self.engine = open_engine(model)
        self.over_length = over_length

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B first frames; rows without a target are invalid."""
        wanted = [targets(text, row) for text, row in zip(prompts.texts, prompts.columns, strict=True)]
        images = to_pil(media.images)
        values = [self._spelling(image, row) if row else 0.0 for image, row in zip(images, wanted, strict=True)]
        return Scores(torch.tensor(values), valid=torch.tensor([bool(row) for row in wanted]))

    def _spelling(self, image: Any, wanted: Sequence[str]) -> float:
        return spelling([plain(line) for line in self.engine(image).txts or ()], wanted, self.over_length)


def open_engine(config: str | None) -> Any:
    """RapidOCR on as many threads as torch has.

    Raises:
        InputError: it is not installed, or there is no such configuration.
    """
    optional("onnxruntime", "ocr", "ocr")
    if config is not None and not Path(config).is_file():
        raise InputError(
            f"there is no RapidOCR configuration {config!r}; give the path of a YAML file, or leave it out"
        )
    threads = {"EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads()}
    quiet = {"Global.log_level": "critical"}
    return optional("rapidocr", "ocr", "ocr").RapidOCR(config_path=config, params=threads | quiet)
