"""Is it the same face or subject as in the references, in every frame? The pooled similarity of IPRO (2510.14255)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.image_encoders import embed, embed_pools, image_encoder
from visalign.rewards.lifting import frame_indices
from visalign.rewards.references import references
from visalign.rewards.regions import YUNET, BoxColumn, Everywhere, Finder, YuNet, cut
from visalign.types import InputError, Media, Prompts, Scores


def pooled_similarity(found: Tensor, pool: Tensor) -> Tensor:
    """Mean cosine of each unit embedding (N, D) with all of a pool (P, D), (N,): copying one reference is not enough.

    Example:
        >>> pooled_similarity(torch.eye(2)[:1], torch.eye(2))
        tensor([0.5000])
    """
    return (found @ pool.T).mean(1).clamp(-1, 1)


def by_rate(similarities: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """The mean similarity of the frames where somebody was found, times their share; and that share.

    A negative mean is not softened by the share: hiding the face never pays.

    Args:
        similarities: of the frames with a face, (N,), N ≥ 1.
        frames: how many were looked at.

    Example:
        >>> by_rate(torch.tensor([0.6, 0.4]), 4)
        (tensor(0.2500), tensor(0.5000))
    """
    mean, rate = similarities.mean(), torch.tensor(len(similarities) / frames, device=similarities.device)
    return torch.minimum(mean, mean * rate), rate


class Identity(Reward):
    """Mean cosine with the pool of references, times the share of frames where somebody is, in [-1, 1].

    Without a detector the whole frame, or the region in a column, is the subject. With one, the face that is most like
    the references counts in each frame, and the likeliest face of each reference. Nobody in the references, or in too
    few frames, is invalid.

    Args:
        model: the embedder: a DINOv2, or another image encoder (`shapes/clip`, a CLIP of yours, …).
        detector: None, `yunet`, or the path of a YuNet file; needs `visalign[cv]`.
        column: where a row's references are (a path, a tensor, or a list).
        boxes: a column with the subject's region: left, top, right, bottom in [0, 1], one for all frames, or a list
            with one, or None, for each frame.
        margin: widens each region by this share of its sides.
        frames: how many frames of a video are looked at.
        least_found: share of frames that must show somebody.

    Raises:
        InputError: the model or the detector cannot be loaded, both a detector and boxes are given, or (in `score`) a
            row lacks a column.
    """

    spec = RewardSpec(
        name="identity",
        media=("image", "video"),
        inputs=("reference",),
        differentiable=True,
        range=(-1.0, 1.0),
        weights=(Weights("facebook/dinov2-base", "model.safetensors", "Apache-2.0"), YUNET),
        memory_gb=0.35,
        paper="2510.14255",
        tiny="shapes/clip",
    )

    def __init__(
        self,
        model: str = "facebook/dinov2-base",
        detector: str | None = None,
        column: str = "reference",
        boxes: str | None = None,
        margin: float = 0.2,
        frames: int = 8,
        least_found: float = 0.5,
    ) -> None:
        if detector is not None and boxes is not None:
            raise InputError("identity takes a detector or a column of boxes, but both came; leave one out")
        self.finder = open_finder(detector, boxes)
        self.encoder = image_encoder(model)
        self.column, self.margin, self.frames, self.least_found = column, margin, frames, least_found
        self.spec = replace(self.spec, inputs=(column, *([boxes] if boxes else [])))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B media; components `similarity` where somebody is found, and `found`, the share of frames."""
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels of the regions; where these are has none."""
        pools = embed_pools(self.encoder, self._pools(prompts), media.pixels.device)
        rows = zip(media.pixels.float(), prompts.columns, pools, strict=True)
        values, similarity, found = (
            torch.stack(part) for part in zip(*(self._judge(*row) for row in rows), strict=True)
        )
        valid = (found > 0) & (found >= self.least_found)
        return Scores(values, {"similarity": similarity.detach(), "found": found}, valid.cpu())

    def _pools(self, prompts: Prompts) -> list[tuple[Tensor, ...]]:
        """The subject in each reference; a shared picture gives one shared region."""
        pools = references(prompts, self.column, "identity")
        distinct = {id(p): p for pool in pools for p in pool}
        seen = {k: [cut(p, box, self.margin) for box in self.finder.reference(p)] for k, p in distinct.items()}
        return [tuple(region for p in pool for region in seen[id(p)]) for pool in pools]

    def _judge(self, video: Tensor, columns: Mapping[str, Any], pool: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, similarity and share of frames of one video (F, 3, H, W)."""
        chosen = frame_indices(len(video), "uniform", self.frames)
        boxes = [self.finder.frame(video[i], columns, i) for i in chosen]
        regions = [cut(video[i], box, self.margin) for i, row in zip(chosen, boxes, strict=True) for box in row]
        if not regions or not len(pool):
            nothing = 0 * video.sum()  # keeps the batch's gradient defined
            return nothing, nothing, nothing.detach()
        similarities = pooled_similarity(embed(self.encoder, regions), pool).split([len(row) for row in boxes if row])
        best = torch.stack([frame.amax() for frame in similarities])
        value, rate = by_rate(best, len(chosen))
        return value, best.mean(), rate


def open_finder(detector: str | None, boxes: str | None) -> Finder:
    """What finds the subject: a detector, a column of boxes, or nothing, which is the whole frame."""
    if detector is not None:
        return YuNet(detector, "identity")
    return Everywhere() if boxes is None else BoxColumn(boxes)
