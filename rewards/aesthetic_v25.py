"""Aesthetic predictor v2.5: ratings from 1 to 10 from a SigLIP embedding. Its head is AGPL-3.0 and is never fetched."""

from __future__ import annotations

from torch import Tensor

from visalign.rewards.base import RewardSpec, Weights
from visalign.rewards.heads import HeadReward, has_head, open_head
from visalign.types import InputError

ENCODER = "google/siglip-so400m-patch14-384"
HEAD = Weights("discus0434/aesthetic-predictor-v2-5 on GitHub", "models/aesthetic_predictor_v2_5.pth", "AGPL-3.0")
LAYERS = (1152, 1024, 128, 64, 16, 1)
"""Widths of its head, without activations."""


class AestheticV25(HeadReward):
    """The v2.5 head on SigLIP: about 1 to 10, good pictures above 5.5, without bounds; or a folder's head.

    Args:
        model: the encoder of the weight file, or a folder as in `aesthetic`, or `shapes/aesthetic`.
        weights: local path of aesthetic_predictor_v2_5.pth, whose licence you accept by getting it yourself.

    Raises:
        InputError: no weights were given for the encoder, they cannot be loaded, or (in `score`) do not fit it.

    Example:
        >>> import torch
        >>> from visalign.types import Media, Prompts
        >>> noise = Media.of_images(torch.rand(2, 3, 64, 64))
        >>> bool((AestheticV25("shapes/aesthetic").score(noise, Prompts(("", ""))).values < 3).all())
        True
    """

    spec = RewardSpec(
        name="aesthetic_v2.5",
        differentiable=True,
        weights=(Weights(ENCODER, "model.safetensors", "Apache-2.0"), HEAD),
        memory_gb=3.5,
        paper="aesthetic-predictor-v2-5, 2024",
        tiny="shapes/aesthetic",
    )

    def __init__(self, model: str = ENCODER, weights: str | None = None) -> None:
        if weights is None and not has_head(model):
            raise InputError(
                f"aesthetic_v2.5 does not fetch its head, which is {HEAD.licence}; get {HEAD.file} from {HEAD.repo} "
                f"and give its path as weights"
            )
        super().__init__(open_head(model, HEAD, weights))

    def values(self, images: Tensor, texts: tuple[str, ...]) -> Tensor:
        """The head's values (B,)."""
        return self.judge(images)
