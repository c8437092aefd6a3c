"""LPIPS (1801.03924): distance of the deep features of an image and a reference, weighted as people judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.lpips_trunks import FILES, TRUNKS, Convolutions, Tower, Trunk
from visalign.rewards.references import closest
from visalign.types import Media, Prompts, Scores


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

    The channel weights come with torchmetrics; the trunk is torchvision's, trained on ImageNet. On the vision tower of
    a CLIP all channels count alike, and a layer adds at most 4.

    Args:
        model: `alex`, fast and closest to people, `vgg`, smoother to optimise, or a model of open_clip, such as
            `shapes/clip`.
        weights: the weights of `alex` or `vgg` as torchvision saves them; None downloads them once.
        column: where a row's reference is (a path, a tensor, or a list); `source` falls back to the prompt's image.

    Raises:
        InputError: no such model, torchmetrics is not installed, the weights are not at hand or fit no such trunk, or
            (in `score`) a row does not have the column.

    Example:
        >>> picture = torch.rand(3, 64, 64)
        >>> same = Prompts(("a star",), ({"reference": picture},))
        >>> LPIPS("shapes/clip").score(Media.of_images(picture[None]), same).values
        tensor([-0.])
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
        tiny="shapes/clip",
    )

    def __init__(self, model: str = "alex", weights: str | None = None, column: str = "reference") -> None:
        self.trunk: Trunk = Convolutions(model, weights) if model in TRUNKS else Tower(model)
        self.column = column
        self.spec = replace(self.spec, inputs=(column,))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Distances of B first frames, negative; invalid where no reference can be read."""
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        return closest(media, prompts, self.column, "lpips", self._compare)

    def _compare(self, images: Tensor, references: Tensor) -> Tensor:
        seen = self.trunk.features(images)
        return -distance(seen, self.trunk.features(references), self.trunk.heads(seen))
