"""Text and image encoders with a shared embedding: one loaded copy serves every reward that names it.

Two stock libraries stand behind one class: transformers (`CLIPModel`, `SiglipModel`, …) for a folder or hub id, and
open_clip for `open_clip:ARCHITECTURE/TAG` or a folder with an `open_clip_config.json`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from visalign.rewards.preprocess import Fit, Preprocess
from visalign.rewards.weights import source_of
from visalign.types import InputError

_TEXTS_KEPT = 4096
_shared: WeakValueDictionary[str, DualEncoder] = WeakValueDictionary()


def dual_encoder(name: str) -> DualEncoder:
    """The encoder of a name; the same object while anyone holds it.

    Args:
        name: `shapes/clip`, a folder, a hub id, or `open_clip:ViT-H-14/laion2b_s32b_b79k`.

    Raises:
        InputError: it is not found, or is no text and image encoder.
    """
    encoder = _shared.get(name)
    if encoder is None:
        encoder = _shared[name] = _open(name)
    return encoder


def _open(name: str) -> DualEncoder:
    source = source_of(name)
    if name.startswith("open_clip:") or (Path(source) / "open_clip_config.json").is_file():
        return OpenClipEncoder(source)
    return TransformersEncoder(source)


class DualEncoder(ABC):
    """Unit embeddings of images and texts.

    Attributes:
        preprocess: what images go through.
        logit_scale: what multiplies the cosine in training, exp of the stored parameter.
    """

    preprocess: Preprocess
    logit_scale: float

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)
        self._texts: OrderedDict[str, Tensor] = OrderedDict()

    @abstractmethod
    def _embed_pixels(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, D) of preprocessed pixels."""

    @abstractmethod
    def _embed_texts(self, texts: list[str]) -> Tensor:
        """Embeddings (B, D) of texts."""

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        if next(self.module.parameters()).device != device:
            self.module.to(device)
            self._texts.clear()

    def images(self, images: Tensor, fit: Fit | None = None) -> Tensor:
        """Unit embeddings (B, D) float32 of images (B, 3, H, W) in [0, 1]; gradients pass."""
        self.to(images.device)
        ready = self.preprocess if fit is None else Preprocess(**(vars(self.preprocess) | {"fit": fit}))
        return normalize(self._embed_pixels(ready(images)).float(), dim=-1)

    @torch.no_grad()
    def texts(self, texts: tuple[str, ...], device: torch.device) -> Tensor:
        """Unit embeddings (B, D) float32 of texts; each distinct text is encoded once and remembered."""
        self.to(device)
        missing = [t for t in dict.fromkeys(texts) if t not in self._texts]
        if missing:
            self._texts.update(zip(missing, normalize(self._embed_texts(missing).float(), dim=-1), strict=True))
        result = torch.stack([self._texts[t] for t in texts])
        while len(self._texts) > _TEXTS_KEPT:
            self._texts.popitem(last=False)
        return result


class TransformersEncoder(DualEncoder):
    """A CLIP-like model of transformers, with its own processor's sizes."""

    def __init__(self, source: str) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        try:
            model: Any = AutoModel.from_pretrained(source, dtype=torch.float32)
            processor: Any = AutoImageProcessor.from_pretrained(source)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise InputError(f"the encoder {source!r} cannot be loaded: {error}") from error
        super().__init__(model)
        cropped = bool(getattr(processor, "do_center_crop", False))
        side = processor.crop_size["height"] if cropped else processor.size["height"]
        self.preprocess = Preprocess(
            side, "crop" if cropped else "squash", tuple(processor.image_mean), tuple(processor.image_std)
        )
        self.logit_scale = float(model.logit_scale.exp())

    def _embed_pixels(self, pixels: Tensor) -> Tensor:
        return _pooled(self.module.get_image_features(pixel_values=pixels))  # type: ignore[operator]

    def _embed_texts(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        device = next(self.module.parameters()).device
        return _pooled(self.module.get_text_features(**tokens.to(device)))  # type: ignore[operator]


def _pooled(features: Any) -> Tensor:
    return features if isinstance(features, Tensor) else features.pooler_output


class OpenClipEncoder(DualEncoder):
    """A model of open_clip, by `open_clip:ARCHITECTURE/TAG` or a folder."""

    def __init__(self, source: str) -> None:
        import open_clip

        if source.startswith("open_clip:"):
            architecture, _, tag = source.removeprefix("open_clip:").partition("/")
            model = open_clip.create_model(architecture, pretrained=tag or None)
            self.tokenizer = open_clip.get_tokenizer(architecture)
            config = open_clip.get_model_preprocess_cfg(model)
        else:
            name = f"local-dir:{source}"
            model = open_clip.create_model(name)
            self.tokenizer = open_clip.get_tokenizer(name)
            config = json.loads((Path(source) / "open_clip_config.json").read_text(encoding="utf-8"))["preprocess_cfg"]
        super().__init__(model.float())
        size = config.get("size") or model.visual.image_size
        side = size if isinstance(size, int) else size[0]
        fits: dict[str, Fit] = {"shortest": "crop", "longest": "pad", "squash": "squash"}
        fit = fits[config.get("resize_mode") or "shortest"]
        self.preprocess = Preprocess(side, fit, tuple(config["mean"]), tuple(config["std"]))
        self.logit_scale = float(model.logit_scale.exp())

    def _embed_pixels(self, pixels: Tensor) -> Tensor:
        return self.module.encode_image(pixels)  # type: ignore[operator]

    def _embed_texts(self, texts: list[str]) -> Tensor:
        return self.module.encode_text(self.tokenizer(texts).to(next(self.module.parameters()).device))  # type: ignore[operator]
