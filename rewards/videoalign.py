"""VideoAlign's VideoReward (2501.13918): visual quality, motion quality and text alignment of a video."""

from __future__ import annotations

import torch
from torch import Tensor

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.lifting import indices_at
from visalign.rewards.token_head import Head, filled, read_template, token_head
from visalign.types import Media, Prompts, Scores

HEAD = Head(("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"), (0,), bias=False, alpha=128)
SCALE = {"VQ": (3.6757, 2.2476), "MQ": (1.1646, 1.3811), "TA": (2.8105, 2.5121)}
LOW, HIGH = 128 * 28 * 28, 256 * 28 * 28
LUMA = (0.299, 0.587, 0.114)
RUBRIC = """Rate this video in three ways, each by itself.

Visual quality: sharpness, detail, light and composition of the frames. Rating: <|VQ_reward|>
END

Motion quality: steady, smooth and natural movement, and enough of it. Rating: <|MQ_reward|>
END

Text alignment: subjects, movement, place, style and camera as the text says.

Textual prompt - {prompt}
Rating: <|TA_reward|>
END"""


def per_token(outputs: Tensor) -> Tensor:
    """One number a token, (B, T), of outputs (B, T, 1), or the diagonal of outputs (B, T, T).

    Example:
        >>> per_token(torch.tensor([[[1.0], [2.0], [3.0]]])), per_token(torch.eye(2)[None])
        (tensor([[1., 2., 3.]]), tensor([[1., 1.]]))
    """
    return outputs.squeeze(-1) if outputs.shape[-1] == 1 else outputs.diagonal(dim1=1, dim2=2)


def grey(frames: Tensor) -> Tensor:
    """The luma of frames (…, 3, H, W) in all three channels; colour says nothing of motion, and can be hacked."""
    luma = torch.tensor(LUMA, device=frames.device).view(3, 1, 1)
    return (frames * luma).sum(-3, keepdim=True).expand_as(frames)


class VideoAlign(Reward):
    """Sum of three z-scores, `VQ`, `MQ` and `TA`, by the mean and spread that came with the weights; each about -2 … 2.

    Two frames a second are judged, in memory. `VQ` and `MQ` stand before the prompt in the text and do not depend on
    it. The weights were trained with one long rubric, which is not reproduced here: values equal the published ones
    only with that text as `template`. Without it our own short rubric is used, to which the weights were not fitted.

    Args:
        model: the base model's folder or hub id, for its config and processor; `shapes/videoalign` has weights too.
        weights: a local file in place of the hub's.
        template: a text file with `{prompt}` and the three special tokens, each once.
        grayscale: `MQ` sees the video without colour, in a second pass.
        fps: judged frames a second.
        dtype: of the base model, `bfloat16` as it was trained, or `float32`; the head is float32.

    Raises:
        InputError: a file is missing or does not fit.
    """

    spec = RewardSpec(
        name="videoalign",
        media=("video",),
        inputs=("prompt",),
        differentiable=True,
        weights=(Weights("KlingTeam/VideoReward", "checkpoint-11352/model.pth", "MIT code; Apache-2.0 weights"),),
        memory_gb=4.6,
        paper="2501.13918",
        tiny="shapes/videoalign",
    )

    def __init__(
        self,
        model: str = "Qwen/Qwen2-VL-2B-Instruct",
        weights: str | None = None,
        template: str | None = None,
        grayscale: bool = False,
        fps: float = 2.0,
        dtype: str = "bfloat16",
    ) -> None:
        self.template = read_template(template, RUBRIC, HEAD.tokens)
        self.net = token_head(model, self.spec.weights[0], weights, HEAD, dtype)
        self.grayscale = grayscale
        self.fps = fps

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Sums and parts of B videos.

        Raises:
            InputError: the media are images, or their frame rate is not known.
        """
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels of the judged frames."""
        frames = media.pixels[:, indices_at(media.pixels.shape[1], media.fps, self.fps)]
        texts = [filled(self.template, text) for text in prompts.texts]
        raw = dict(zip(SCALE, self._judge(frames, texts).unbind(1), strict=True))
        if self.grayscale:
            raw["MQ"] = self._judge(grey(frames), texts)[:, list(SCALE).index("MQ")]
        parts = {name: (raw[name] - mean) / std for name, (mean, std) in SCALE.items()}
        return Scores(torch.stack(list(parts.values())).sum(0), parts)

    def _judge(self, frames: Tensor, texts: list[str]) -> Tensor:
        """Outputs (B, 3) for videos (B, F, 3, H, W)."""
        fitted = self.net.fitted(frames.flatten(0, 1), LOW, HIGH).unflatten(0, frames.shape[:2])
        return per_token(self.net(list(fitted), texts, "video"))
