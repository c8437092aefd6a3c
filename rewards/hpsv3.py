"""HPSv3 (2508.03789): how people would rate a picture for a prompt, by a Qwen2-VL with a head of mean and spread."""

from __future__ import annotations

import torch
from torch import Tensor

from visalign.rewards.base import Reward, RewardSpec, Weights
from visalign.rewards.token_head import Head, filled, read_template, token_head
from visalign.types import Media, Prompts, Scores

HEAD = Head(("<|Reward|>",), (1024, "relu", "dropout", 16, "relu", 2))
PIXELS = 256 * 28 * 28
RUBRIC = """Rate this picture as a careful viewer would. First look at its quality: sharpness, light, composition,
anatomy and detail. Then look at how well it shows the text: objects, their number, colours, places and style.

Textual prompt - {prompt}

Overall rating: <|Reward|>
END"""


def mu_sigma(outputs: Tensor) -> Scores:
    """Scores from the head's (B, 1, 2): the mean, and the spread e^second as component `sigma`.

    Example:
        >>> scores = mu_sigma(torch.tensor([[[8.5, 0.0]]]))
        >>> scores.values.item(), scores.components["sigma"].item()
        (8.5, 1.0)
    """
    return Scores(outputs[:, 0, 0], {"sigma": outputs[:, 0, 1].exp()})


class HPSv3(Reward):
    """Mean of the rating, about -5 … 15; photographs lie between 8 and 12. Component `sigma` is its spread.

    The weights were trained with one long rubric, which is not reproduced here: values equal the published ones only
    with that text as `template`. Without it our own short rubric is used, to which the weights were not fitted.

    Args:
        model: the base model's folder or hub id, for its config and processor; `shapes/hpsv3` has weights too.
        weights: a local file in place of the hub's.
        template: a text file with `{prompt}` and `<|Reward|>`, each once.
        dtype: of the base model, `bfloat16` as it was trained, or `float32`; the head is float32.

    Raises:
        InputError: a file is missing or does not fit.
    """

    spec = RewardSpec(
        name="hpsv3",
        inputs=("prompt",),
        differentiable=True,
        weights=(Weights("MizzenAI/HPSv3", "HPSv3.safetensors", "MIT code; weights: see the model card"),),
        memory_gb=15.5,
        paper="2508.03789",
        tiny="shapes/hpsv3",
    )

    def __init__(
        self,
        model: str = "Qwen/Qwen2-VL-7B-Instruct",
        weights: str | None = None,
        template: str | None = None,
        dtype: str = "bfloat16",
    ) -> None:
        self.template = read_template(template, RUBRIC, HEAD.tokens)
        self.net = token_head(model, self.spec.weights[0], weights, HEAD, dtype)

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Ratings of B first frames."""
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same with gradients to the pixels."""
        texts = [filled(self.template, text) for text in prompts.texts]
        return mu_sigma(self.net(list(self.net.fitted(media.images, PIXELS, PIXELS)), texts, "image"))
