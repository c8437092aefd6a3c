"""Networks whose layers LPIPS compares: torchvision's convolutions, or the vision tower of a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from visalign.rewards.base import Weights
from visalign.rewards.encoders import OpenClipEncoder, dual_encoder
from visalign.rewards.optional import optional
from visalign.rewards.weights import fetch, read_tensors
from visalign.types import InputError

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""Mean and deviation of the convolutions' pixels in [-1, 1]."""
TRUNKS = {
    "alex": ("alexnet", "AlexNet_Weights", (1, 4, 7, 9, 11)),
    "vgg": ("vgg16", "VGG16_Weights", (3, 8, 15, 22, 29)),
}
"""Name → torchvision's model, its weights, and the activations that are compared."""
FILES = {
    "alex": Weights("torchvision", "alexnet-owt-7be5be79.pth", "BSD-3-Clause"),
    "vgg": Weights("torchvision", "vgg16-397923af.pth", "BSD-3-Clause"),
}


class Trunk(Protocol):
    """Gives what is compared, and says how much each channel of it counts."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Each layer's (B, C, H, W) of images (B, 3, H, W) in [0, 1]; gradients pass."""

    def heads(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Weights (1, C, 1, 1) of each layer's channels, not negative."""


class Convolutions:
    """AlexNet or VGG-16 without their classifiers, and the channel weights that torchmetrics brings.

    Args:
        model: `alex` or `vgg`.
        weights: the trunk's weights as torchvision saves them; None downloads them once.

    Raises:
        InputError: torchmetrics is not installed, or the weights are not at hand or another model's.
    """

    def __init__(self, model: str, weights: str | None) -> None:
        optional("torchmetrics", "metrics", "lpips")
        self.layers = open_convolutions(model, weights)
        self.taps = TRUNKS[model][2]
        held = read_tensors(Path(str(files("torchmetrics.functional.image") / "lpips_models" / f"{model}.pth")))
        self._heads = [held[f"lin{layer}.model.1.weight"] for layer in range(len(self.taps))]

    def features(self, images: Tensor) -> list[Tensor]:
        """The activations that are compared."""
        self.layers.to(images.device)
        shift, scale = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
        state, kept = (2 * images - 1 - shift) / scale, []
        for index, layer in enumerate(self.layers):
            state = layer(state)
            if index in self.taps:
                kept.append(state)
        return kept

    def heads(self, features: Sequence[Tensor]) -> list[Tensor]:
        """As people judged."""
        return [head.to(layer) for head, layer in zip(self._heads, features, strict=True)]


def open_convolutions(model: str, weights: str | None) -> nn.Sequential:
    """The convolutions of torchvision's model with its weights, frozen; the classifier is left out.

    Raises:
        InputError: the weights are not at hand, or they are another model's.
    """
    from torchvision import models

    architecture, enum, _ = TRUNKS[model]
    if weights is not None:
        held = read_tensors(fetch(FILES[model], weights))
    else:
        try:
            held = models.get_weight(f"{enum}.IMAGENET1K_V1").get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise InputError(
                f"torchvision's {FILES[model].file} is not at hand and cannot be downloaded: {error}. Give a local "
                f"file as `weights`"
            ) from error
    with torch.device("meta"):
        layers: nn.Sequential = models.get_model(architecture, weights=None).features
    named = {k.removeprefix("features."): v for k, v in held.items() if k.startswith("features.")}
    try:
        layers.load_state_dict(named, assign=True)
    except RuntimeError as error:
        raise InputError(f"{weights!r} does not hold torchvision's {architecture}; give {FILES[model].file}") from error
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # a kept activation must not be overwritten by the next layer
    return layers.eval().requires_grad_(False)


class Tower:
    """Every layer of an open_clip vision tower, each channel with the same weight: LPIPS before people are asked.

    Args:
        name: `shapes/clip`, a folder of open_clip's, or `open_clip:ARCHITECTURE/TAG`.

    Raises:
        InputError: it cannot be loaded, or is no model of open_clip.
    """

    def __init__(self, name: str) -> None:
        encoder = dual_encoder(name)
        if not isinstance(encoder, OpenClipEncoder):
            raise InputError(
                f"lpips takes model: {' | '.join(TRUNKS)} or an open_clip encoder such as shapes/clip, not {name!r}"
            )
        self.encoder = encoder

    def features(self, images: Tensor) -> list[Tensor]:
        """Patch tokens as maps, at the tower's own size of picture."""
        self.encoder.to(images.device)
        visual: Any = self.encoder.module.visual
        pixels = self.encoder.preprocess(images)
        return visual.forward_intermediates(pixels, intermediates_only=True)["image_intermediates"]

    def heads(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One, by layer: the distance is the squared chord between unit features, as in the paper's baseline."""
        return [torch.ones(1, layer.shape[1], 1, 1, device=layer.device) for layer in features]
