"""Encoders of images alone: DINOv2, or the image side of a text and image encoder; shared while anyone holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn.functional import normalize

from visalign.rewards.encoders import dual_encoder
from visalign.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from visalign.rewards.weights import source_of
from visalign.types import InputError

_shared: WeakValueDictionary[str, Dinov2Encoder] = WeakValueDictionary()


class ImageEncoder(Protocol):
    """Unit embeddings of images."""

    preprocess: Preprocess

    def images(self, images: Tensor) -> Tensor:
        """Unit embeddings (B, D) float32 of images (B, 3, H, W) in [0, 1]; gradients pass."""


def image_encoder(name: str) -> ImageEncoder:
    """The encoder of a name.

    Args:
        name: a DINOv2 (folder or hub id), or anything that `dual_encoder` takes, such as `shapes/clip`.

    Raises:
        InputError: it is not found, or is no such encoder.
    """
    source = source_of(name)
    if name.startswith("open_clip:") or (Path(source) / "open_clip_config.json").is_file():
        return dual_encoder(name)
    from transformers import AutoConfig

    try:
        kind = AutoConfig.from_pretrained(source).model_type
    except (OSError, ValueError) as error:
        raise InputError(f"the encoder {name!r} cannot be loaded: {error}") from error
    if kind != "dinov2":
        return dual_encoder(name)
    encoder = _shared.get(name)
    if encoder is None:
        encoder = _shared[name] = Dinov2Encoder(source)
    return encoder


class Dinov2Encoder:
    """The class token of DINOv2 after its last norm.

    Images are seen at the size of the position embeddings (518 for the published models), not at the 224 that the
    hub's processor is set to, so that nothing is interpolated.
    """

    def __init__(self, source: str) -> None:
        from transformers import Dinov2Model

        try:
            module: Any = Dinov2Model.from_pretrained(source, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise InputError(f"the encoder {source!r} cannot be loaded: {error}") from error
        self.module = module.eval().requires_grad_(False)
        self.preprocess = Preprocess(module.config.image_size, "crop", IMAGENET_MEAN, IMAGENET_STD)

    def images(self, images: Tensor) -> Tensor:
        """Unit embeddings (B, D) float32 of images (B, 3, H, W) in [0, 1]; gradients pass."""
        self.module.to(images.device)
        return normalize(self.module(self.preprocess(images)).last_hidden_state[:, 0].float(), dim=-1)


def embed(encoder: ImageEncoder, pictures: Sequence[Tensor]) -> Tensor:
    """Unit embeddings (N, D) of one or more pictures (3, H, W) of any sizes; gradients pass."""
    return encoder.images(torch.cat([encoder.preprocess.square(p[None]) for p in pictures]))


@torch.no_grad()
def embed_pools(encoder: ImageEncoder, pools: Sequence[Sequence[Tensor]], device: torch.device) -> list[Tensor]:
    """Unit embeddings (P, D) of each row's pictures, (0, 0) of an empty row; a shared picture is encoded once."""
    empty = torch.empty(0, 0)
    distinct = list({id(p): p for pool in pools for p in pool}.values())
    if not distinct:
        return [empty for _ in pools]
    vectors = embed(encoder, [p.to(device) for p in distinct])
    known = {id(p): v for p, v in zip(distinct, vectors, strict=True)}
    return [torch.stack([known[id(p)] for p in pool]) if pool else empty for pool in pools]
