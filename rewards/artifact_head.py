"""How free of artefacts a picture is, by a head on image embeddings: a differentiable guard against reward hacking.

Understanding Reward Hacking in Text-to-Image RL asks a vision-language model (`artifact`); this is the same question to
a small trained head.
"""

from __future__ import annotations

from torch import Tensor

from visalign.rewards.base import RewardSpec
from visalign.rewards.heads import HeadReward, load_head
from visalign.rewards.weights import source_of
from visalign.types import InputError


class ArtifactHead(HeadReward):
    """1 − P(artefact), in [0, 1].

    Args:
        model: `shapes/artifact`, or a folder as `rewards/heads.py` writes them, whose range is [0, 1].

    Raises:
        InputError: the folder cannot be loaded, or its head gives no probability.

    Example:
        >>> import torch
        >>> from visalign.types import Media, Prompts
        >>> noise = Media.of_images(torch.rand(2, 3, 64, 64))
        >>> bool((ArtifactHead().score(noise, Prompts(("", ""))).values < 0.5).all())
        True
    """

    spec = RewardSpec(
        name="artifact_head", differentiable=True, range=(0.0, 1.0), memory_gb=0.1, tiny="shapes/artifact"
    )

    def __init__(self, model: str = "shapes/artifact") -> None:
        head = load_head(source_of(model))
        if head.range != (0, 1):
            raise InputError(
                f"artifact_head takes a head that gives P(artefact), but the range of {model!r} is {head.range}; "
                f'write "range": [0, 1] in its config.json if that is what it was trained to give'
            )
        super().__init__(head)

    def values(self, images: Tensor, texts: tuple[str, ...]) -> Tensor:
        """Probabilities (B,) that there is no artefact."""
        return 1 - self.judge(images)
