"""GenEval's questions with an open-vocabulary detector: not the official judge, whose Mask2Former needs mmdet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.detectors import Detector
from visalign.rewards.encoders import dual_encoder
from visalign.rewards.geneval_rules import Detected, Detections, credit_terms, kept, strict_and_dense
from visalign.rewards.image_encoders import embed
from visalign.rewards.regions import cut
from visalign.types import InputError, Media, Prompts, Scores

ENCODER, TINY_COLOURS = "openai/clip-vit-large-patch14", "shapes/clip"
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


class GenEval(Reward):
    """Are the objects of the prompt there, in their number, colours and places? Not GenEval's official number.

    The value is (1 − graded) · strict + graded · dense, in [0, 1]; both parts are components. Differences to the
    official judge: the detector, counts have to be exact, and colours are read from the box, not from a mask.

    Args:
        model: an OWLv2, OWL-ViT or Grounding DINO (folder or hub id).
        colours: the text and image encoder that names the colour of a box; None is OpenAI's CLIP L/14, or, for
            `shapes/detector`, `shapes/clip`.
        graded: share of the partial credit in [0, 1].
        threshold: least confidence of an object.
        counting_threshold: the same for prompts that count. GenEval's 0.9 is on Mask2Former's scale; OWLv2 gives plain
            objects 0.6 to 0.75, so that 0.9 would find nothing. Set it on pictures of known counts.
        overlap: a box with more than this intersection over union with a surer one is the same object.

    Raises:
        InputError: a model cannot be loaded, `graded` is out of range, or (in `score`) a prompt has no GenEval fields.

    Example:
        >>> asked = {"tag": "single_object", "include": [{"class": "star", "count": 1}]}
        >>> empty = Media.of_images(torch.ones(1, 3, 64, 64))
        >>> GenEval("shapes/detector").score(empty, Prompts(("a star",), (asked,))).components["strict"]
        tensor([0.])
    """

    spec = RewardSpec(
        name="geneval",
        inputs=("tag", "include"),
        range=(0.0, 1.0),
        weights=(
            Weights("google/owlv2-base-patch16-ensemble", "model.safetensors", "Apache-2.0"),
            Weights(ENCODER, "model.safetensors", "MIT"),
        ),
        memory_gb=2.3,
        paper="2310.11513, with another detector",
        tiny="shapes/detector",
    )

    def __init__(
        self,
        model: str = "google/owlv2-base-patch16-ensemble",
        colours: str | None = None,
        graded: float = 0.5,
        threshold: float = 0.3,
        counting_threshold: float = 0.3,
        overlap: float = 0.5,
    ) -> None:
        if not 0 <= graded <= 1:
            raise InputError(f"geneval takes graded in [0, 1], but {graded} came; write for example graded: 0.5")
        self.detector = Detector(model)
        self.encoder = dual_encoder(colours or (TINY_COLOURS if model == self.spec.tiny else ENCODER))
        self.graded = graded
        self.limits = (threshold, counting_threshold, overlap)

    @torch.no_grad()
    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B first frames; components `strict` (0 or 1) and `dense`, (B,) each."""
        rows = [_fields(text, row) for text, row in zip(prompts.texts, prompts.columns, strict=True)]
        verdicts = [self._judge(image, row) for image, row in zip(media.images.float(), rows, strict=True)]
        strict, dense = torch.tensor(verdicts).unbind(1)
        return Scores((1 - self.graded) * strict + self.graded * dense, {"strict": strict, "dense": dense})

    def _judge(self, image: Tensor, row: Mapping[str, Any]) -> tuple[float, float]:
        names = list(dict.fromkeys(clause["class"] for clause in (*row["include"], *row.get("exclude", ()))))
        boxes = {k: kept(v, row["tag"], *self.limits) for k, v in self.detector.find(image, names).items()}
        coloured = {clause["class"] for clause in row["include"] if "color" in clause}
        found: Detections = {k: self._colour(image, k, v) if k in coloured else v for k, v in boxes.items()}
        return strict_and_dense(credit_terms(found, row))

    def _colour(self, image: Tensor, name: str, objects: Sequence[Detected]) -> list[Detected]:
        """The objects with the colour whose descriptions are nearest to each crop."""
        if not objects:
            return []
        texts = [t.format(colour=c, name=name) for c in COLOURS for t in TEMPLATES]
        described = self.encoder.texts(tuple(texts), image.device).unflatten(0, (len(COLOURS), len(TEMPLATES)))
        crops = embed(self.encoder, [cut(image, d.box, 0.0) for d in objects])  # (N, D)
        nearest = (crops @ normalize(described.mean(1), dim=-1).T).argmax(1)
        return [replace(d, color=COLOURS[i]) for d, i in zip(objects, nearest.tolist(), strict=True)]


def _fields(text: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    missing = [name for name in ("tag", "include") if name not in row]
    if missing or not row["include"]:
        raise InputError(
            f"reward 'geneval' needs the columns tag and include with one clause or more, but the prompt {text!r} has "
            f"{', '.join(row) or 'none'}; use GenEval's metadata, a jsonl file with tag, include and exclude"
        )
    return row
