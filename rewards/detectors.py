"""Open-vocabulary detectors of transformers (OWL-ViT, OWLv2, Grounding DINO) behind one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from visalign.rewards.geneval_rules import Detected
from visalign.rewards.pil import to_pil
from visalign.rewards.weights import source_of
from visalign.types import InputError

Found = list[list[Detected]]
"""Objects of each class that was asked for, in any order."""

LEAST_SCORE = 0.05
"""Below this no threshold is sensible, and the list of boxes is long."""


class Detector:
    """Boxes of named classes in a picture.

    Args:
        model: folder or hub id of an OWL-ViT, OWLv2 or Grounding DINO.

    Raises:
        InputError: it cannot be loaded, or is none of these.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        source = source_of(model)
        try:
            module: Any = AutoModelForZeroShotObjectDetection.from_pretrained(source, dtype=torch.float32)
            self.processor: Any = AutoProcessor.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise InputError(f"the detector {model!r} cannot be loaded: {error}") from error
        kind = module.config.model_type
        if kind not in FINDERS:
            raise InputError(f"{model!r} is a {kind}; give one of {', '.join(FINDERS)}")
        self.module = module.eval().requires_grad_(False)
        self._find = FINDERS[kind]

    @torch.no_grad()
    def find(self, image: Tensor, names: Sequence[str]) -> dict[str, list[Detected]]:
        """Objects of each class in an image (3, H, W) in [0, 1]."""
        self.module.to(image.device)
        (picture,) = to_pil(image[None])
        return dict(zip(names, self._find(self.module, self.processor, picture, names), strict=True))


def _all_at_once(module: Any, processor: Any, picture: Image.Image, names: Sequence[str]) -> Found:
    """OWL: one pass for all classes; each box belongs to the class that it is likeliest of."""
    asked = [[f"a photo of a {name}" for name in names]]
    inputs = processor(text=asked, images=picture, return_tensors="pt").to(module.device)
    (found,) = processor.post_process_grounded_object_detection(
        module(**inputs), threshold=LEAST_SCORE, target_sizes=[(picture.height, picture.width)]
    )
    groups: Found = [[] for _ in names]
    for detected, label in zip(_detected(found), found["labels"].tolist(), strict=True):
        groups[label].append(detected)
    return groups


def _one_by_one(module: Any, processor: Any, picture: Image.Image, names: Sequence[str]) -> Found:
    """Grounding DINO: one pass a class, because it answers with phrases that may mix classes."""
    return [_grounded(module, processor, picture, f"a {name}") for name in names]


def _grounded(module: Any, processor: Any, picture: Image.Image, phrase: str) -> list[Detected]:
    inputs = processor(images=picture, text=[[phrase]], return_tensors="pt").to(module.device)
    (found,) = processor.post_process_grounded_object_detection(
        module(**inputs),
        inputs["input_ids"],
        threshold=LEAST_SCORE,
        text_threshold=LEAST_SCORE,
        target_sizes=[(picture.height, picture.width)],
    )
    return _detected(found)


def _detected(found: Mapping[str, Any]) -> list[Detected]:
    rows = zip(found["boxes"].tolist(), found["scores"].tolist(), strict=True)
    return [Detected((left, top, right, bottom), score) for (left, top, right, bottom), score in rows]


FINDERS: dict[str, Callable[[Any, Any, Image.Image, Sequence[str]], Found]] = {
    "owlv2": _all_at_once,
    "owlvit": _all_at_once,
    "grounding-dino": _one_by_one,
}
