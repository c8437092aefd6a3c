"""LPIPS (1801.03924): distance of the deep features of an image and a reference, weighted as people judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.optional import optional
from visalign.rewards.references import closest
from visalign.rewards.weights import fetch, read_tensors
from visalign.types import InputError, Media, Prompts, Scores

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""Mean and deviation of the trunk's pixels in [-1, 1]."""
TRUNKS = {
    "alex": ("alexnet", "AlexNet_Weights", (1, 4, 7, 9, 11)),
    "vgg": ("vgg16", "VGG16_Weights", (3, 8, 15, 22, 29)),
}
"""Name → torchvision's model, its weights, and the activations that are compared."""
FILES = {
    "alex": Weights("torchvision", "alexnet-owt-7be5be79.pth", "BSD-3-Clause"),
    "vgg": Weights("torchvision", "vgg16-397923af.pth", "BSD-3-Clause"),
}


def distance(images: Sequence[Tensor], references: Sequence[Tensor], heads: Sequence[Tensor]) -> Tensor:
    """Σ over layers of the mean over places of Σ_c w_c (x̂_c − ŷ_c)², with features of unit length, (B,).

    Args:
        images: features of each layer, (B, C, H, W).
        references: the same of the references.
        heads: weights of each layer's channels, (1, C, 1, 1), not negative.
    """
    layers = [
        (w * (normalize(x) - normalize(y)).square()).sum(1).mean((1, 2))
        for x, y, w in zip(images, references, heads, strict=True)
    ]
    return torch.stack(layers).sum(0)


class LPIPS(Reward):
    """Minus the perceptual distance to the closest of the row's references, ≤ 0; beyond −0.6 little is alike.

    The channel weights come with torchmetrics; the trunk is torchvision's, trained on ImageNet.

    Args:
        model: `alex`, fast and closest to people, or `vgg`, smoother to optimise.
        weights: the trunk's weights as torchvision saves them; None downloads them once.
        column: where a row's reference is (a path, a tensor, or a list); `source` falls back to the prompt's image.

    Raises:
        InputError: no such model, torchmetrics is not installed, the weights are not at hand or fit no such trunk, or
            (in `score`) a row does not have the column.
    """

    spec = RewardSpec(
        name="lpips",
        inputs=("reference",),
        differentiable=True,
        range=(None, 0.0),
        weights=(FILES["alex"], Weights("torchmetrics", "functional/image/lpips_models/alex.pth", "BSD-2-Clause")),
        memory_gb=0.01,
        paper="1801.03924",
        extra="metrics",
    )

    def __init__(self, model: str = "alex", weights: str | None = None, column: str = "reference") -> None:
        if model not in TRUNKS:
            raise InputError(f"lpips takes model: {' | '.join(TRUNKS)}, but {model!r} came")
        optional("torchmetrics", "metrics", "lpips")
        self.trunk = open_trunk(model, weights)
        self.taps = TRUNKS[model][2]
        held = read_tensors(Path(str(files("torchmetrics.functional.image") / "lpips_models" / f"{model}.pth")))
        self.heads = [held[f"lin{layer}.model.1.weight"] for layer in range(len(self.taps))]
        self.column = column
        self.spec = replace(self.spec, inputs=(column,))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Distances of B first frames, negative; invalid where no reference can be read."""
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        self.trunk.to(media.pixels.device)
        self.heads = [head.to(media.pixels.device) for head in self.heads]
        return closest(media, prompts, self.column, "lpips", self._compare)

    def _compare(self, images: Tensor, references: Tensor) -> Tensor:
        return -distance(self._features(images), self._features(references), self.heads)

    def _features(self, images: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
        state, kept = (2 * images - 1 - shift) / scale, []
        for index, layer in enumerate(self.trunk):
            state = layer(state)
            if index in self.taps:
                kept.append(state)
        return kept


def open_trunk(model: str, weights: str | None) -> nn.Sequential:
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
        trunk: nn.Sequential = models.get_model(architecture, weights=None).features
    named = {k.removeprefix("features."): v for k, v in held.items() if k.startswith("features.")}
    try:
        trunk.load_state_dict(named, assign=True)
    except RuntimeError as error:
        raise InputError(f"{weights!r} does not hold torchvision's {architecture}; give {FILES[model].file}") from error
    for layer in trunk:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # a kept activation must not be overwritten by the next layer
    return trunk.eval().requires_grad_(False)
