"""Text and image encoders with a shared embedding: one loaded copy serves every reward that names it.

Two stock libraries stand behind one class: transformers (`CLIPModel`, `SiglipModel`, …) for a folder or hub id, and
open_clip for `open_clip:ARCHITECTURE/TAG` (or a weight file in the place of the tag) or a folder with an
`open_clip_config.json`.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from visalign.rewards.base import Reward, Weights
from visalign.rewards.preprocess import Fit, Interpolation, Preprocess
from visalign.rewards.weights import fetch, source_of
from visalign.types import InputError, Media, Prompts, Scores

_TEXTS_KEPT = 4096
_INTERPOLATION: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # numbers of pillow
_RESIZE_MODE: dict[str, Fit] = {"shortest": "crop", "longest": "pad", "squash": "squash"}  # words of open_clip
_NOT_WEIGHTS = ("position_ids", "inv_freq")  # constants that older checkpoints hold
_shared: WeakValueDictionary[tuple[str, str | None], DualEncoder] = WeakValueDictionary()


def dual_encoder(name: str, processor: str | None = None) -> DualEncoder:
    """The encoder of a name; the same object while anyone holds it.

    Args:
        name: `shapes/clip`, a folder, a hub id, or `open_clip:ViT-H-14/laion2b_s32b_b79k`, where the path of a weight
            file may stand for the tag.
        processor: folder or hub id of the tokenizer and the image processor, where they are not beside the weights.

    Raises:
        InputError: it is not found, or is no text and image encoder.
    """
    encoder = _shared.get((name, processor))
    if encoder is None:
        encoder = _shared[name, processor] = _open(name, processor)
    return encoder


def with_file(name: str, weights: Weights, override: str | None) -> str:
    """A bare architecture (`open_clip:ViT-H-14`) with its weight file in the tag's place; a whole name as it is.

    Raises:
        InputError: the file is not at hand, or a file was given for a name that has weights.
    """
    if name.startswith("open_clip:") and "/" not in name:
        return f"{name}/{fetch(weights, override)}"
    if override is not None:
        raise InputError(
            f"{name!r} has weights of its own, but weights={override!r} came; leave one out, or name the architecture "
            f"alone, such as open_clip:ViT-H-14"
        )
    return name


def weight_file(model: str, weights: Weights, override: str | None) -> Path:
    """The weight file of a model: the override, else the one in its folder (safetensors first), else the hub's."""
    if override is None and Path(model).is_dir():
        safe = Path(model) / "model.safetensors"
        override = str(safe if safe.is_file() else Path(model) / weights.file)
    return fetch(replace(weights, repo=model), override)


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill a module from tensors of the same names and shapes; constants of older checkpoints are passed over.

    Raises:
        InputError: a tensor is missing, left over, or of another shape.
    """
    kept = {k: v for k, v in tensors.items() if k.rpartition(".")[2] not in _NOT_WEIGHTS}
    try:
        module.load_state_dict(kept)
    except RuntimeError as error:
        raise InputError(f"{source!r} does not have the layout of {type(module).__name__}: {error}") from error


def _open(name: str, processor: str | None) -> DualEncoder:
    source = source_of(name)
    if name.startswith("open_clip:") or (Path(source) / "open_clip_config.json").is_file():
        return OpenClipEncoder(source)
    return TransformersEncoder(source, processor or source)


class DualEncoder(ABC):
    """Unit embeddings of images and texts.

    Attributes:
        preprocess: what images go through.
        logit_scale: what multiplies the cosine in training, exp of the stored parameter.
        logit_bias: what the sigmoid loss adds then; None where the encoder was not trained with that loss.
    """

    preprocess: Preprocess
    logit_scale: float
    logit_bias: float | None

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)
        bias = dict(module.named_parameters()).get("logit_bias")
        self.logit_bias = None if bias is None else bias.item()
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

    def fitted(self, fit: Fit | None = None) -> Preprocess:
        """The preprocessing, with another way to make images square where one is given."""
        return self.preprocess if fit is None else replace(self.preprocess, fit=fit)

    def images(self, images: Tensor, fit: Fit | None = None) -> Tensor:
        """Unit embeddings (B, D) float32 of images (B, 3, H, W) in [0, 1]; gradients pass."""
        self.to(images.device)
        return normalize(self._embed_pixels(self.fitted(fit)(images)).float(), dim=-1)

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

    def __init__(self, source: str, processor: str) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        try:
            model: Any = AutoModel.from_pretrained(source, dtype=torch.float32)
            self.logit_scale = model.logit_scale.exp().item()
            self.preprocess = preprocess_of(AutoImageProcessor.from_pretrained(processor))
            self.tokenizer: Any = AutoTokenizer.from_pretrained(processor)
        except (OSError, ValueError) as error:
            raise InputError(f"the encoder {source!r} cannot be loaded: {error}") from error
        except AttributeError as error:
            raise InputError(f"{source!r} is a {type(model).__name__}, no encoder of text and images") from error
        super().__init__(model)

    def _embed_pixels(self, pixels: Tensor) -> Tensor:
        return _pooled(self.module.get_image_features(pixel_values=pixels))  # type: ignore[operator]

    def _embed_texts(self, texts: list[str]) -> Tensor:
        config: Any = self.module.config
        length = min(config.text_config.max_position_embeddings, self.tokenizer.model_max_length)  # SigLIP's is endless
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        if config.model_type.startswith("siglip"):
            del tokens["attention_mask"]  # SigLIP was trained to attend to its padding
        return _pooled(self.module.get_text_features(**tokens.to(self.module.device)))  # type: ignore[operator, arg-type]


def _pooled(features: Any) -> Tensor:
    return features if isinstance(features, Tensor) else features.pooler_output


def preprocess_of(processor: Any) -> Preprocess:
    """What an image processor of transformers does, on tensors.

    Raises:
        InputError: it resizes in a way that is not known here.
    """
    sizes = processor.crop_size if processor.do_center_crop else processor.size
    side, shortest = sizes["height"], processor.size["shortest_edge"]
    if processor.resample not in _INTERPOLATION or shortest not in (None, side):
        raise InputError(
            f"{type(processor).__name__} resizes to {dict(processor.size)} with resample {processor.resample} and "
            f"crops to {side}; only bilinear and bicubic resizing to the size of the crop is known"
        )
    fit: Fit = "crop_floor" if processor.do_center_crop else "squash"
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return Preprocess(side, fit, mean, std, interpolation=_INTERPOLATION[processor.resample])


class OpenClipEncoder(DualEncoder):
    """A model of open_clip, by `open_clip:ARCHITECTURE/TAG` or a folder."""

    def __init__(self, source: str) -> None:
        import open_clip

        architecture, _, tag = source.removeprefix("open_clip:").partition("/")
        by_name = source.startswith("open_clip:")
        if by_name and not tag:
            raise InputError(f"{source!r} has no weights; write open_clip:ARCHITECTURE/TAG, for example {_EXAMPLE}")
        name = architecture if by_name else f"local-dir:{source}"
        try:
            model = open_clip.create_model(name, pretrained=tag if by_name else None, require_pretrained=True)
            self.tokenizer = open_clip.get_tokenizer(name)
        except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            raise InputError(f"the encoder {source!r} cannot be loaded: {error}") from error
        super().__init__(model.float())
        self.logit_scale = model.logit_scale.exp().item()
        config = open_clip.get_model_preprocess_cfg(model)
        side = config["size"] if isinstance(config["size"], int) else config["size"][0]
        fill = (config["fill_color"] / 255,) * 3
        fit, mean, std = _RESIZE_MODE[config["resize_mode"]], tuple(config["mean"]), tuple(config["std"])
        self.preprocess = Preprocess(side, fit, mean, std, fill, config["interpolation"])

    def _embed_pixels(self, pixels: Tensor) -> Tensor:
        return self.module.encode_image(pixels)  # type: ignore[operator]

    def _embed_texts(self, texts: list[str]) -> Tensor:
        return self.module.encode_text(self.tokenizer(texts).to(next(self.module.parameters()).device))  # type: ignore[operator]


_EXAMPLE = "open_clip:ViT-H-14/laion2b_s32b_b79k"


class EmbeddingReward(Reward):
    """A reward that is a formula on unit embeddings of a dual encoder; images are judged by their first frame.

    Args:
        encoder: the encoder.
        fit: how images become square; None is the encoder's own way.
    """

    def __init__(self, encoder: DualEncoder, fit: Fit | None = None) -> None:
        self.encoder = encoder
        self.fit = fit

    @abstractmethod
    def values(self, images: Tensor, texts: tuple[str, ...]) -> Tensor:
        """Values (B,) float32 from unit image embeddings (B, D) and B prompts."""

    def prepare(self, media: Media) -> Media:
        """First frames at the encoder's size."""
        return Media.of_images(self.encoder.fitted(self.fit).square(media.images))

    @torch.no_grad()
    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B first frames."""
        return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        return Scores(self.values(self.encoder.images(media.images, self.fit), prompts.texts))
