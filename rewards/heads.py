"""Small networks on unit image embeddings, and their folders: `head.safetensors` beside a `config.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from visalign.rewards.base import Weights
from visalign.rewards.encoders import EmbeddingReward, dual_encoder, load_exactly
from visalign.rewards.weights import fetch, read_tensors, source_of
from visalign.types import InputError

Activation = Literal["none", "relu", "gelu"]
Range = tuple[float, float]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}
FILE = "head.safetensors"


class EmbeddingHead(nn.Module):
    """Linear layers from an embedding to one number, for inference and for training (no dropout).

    Args:
        encoder: the dual encoder whose embeddings it reads, such as `shapes/clip`.
        layers: widths, from the embedding's to 1.
        range: lowest and highest value, reached through a sigmoid; None leaves the last layer's number as it is.
        activation: between layers: `none`, `relu` or `gelu`.

    Example:
        >>> import torch
        >>> EmbeddingHead("shapes/clip", [8, 4, 1], (1.0, 10.0))(torch.rand(3, 8)).shape
        torch.Size([3])
    """

    def __init__(
        self, encoder: str, layers: Sequence[int], range: Range | None = None, activation: Activation = "none"
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.widths = tuple(layers)
        self.range = range
        self.activation = activation
        self._between = ACTIVATIONS[activation]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(self.widths))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Values (B,) of embeddings (B, D)."""
        for layer in self.layers[:-1]:
            embeddings = self._between(layer(embeddings))
        values = self.layers[-1](embeddings).squeeze(-1)  # (B,)
        if self.range is None:
            return values
        low, high = self.range
        return low + (high - low) * values.sigmoid()


def save_head(head: EmbeddingHead, folder: str | Path) -> None:
    """Write a head to a folder that `load_head` and the rewards on heads read."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().cpu() for k, v in head.state_dict().items()}, target / FILE)
    config = {"encoder": head.encoder, "layers": head.widths, "range": head.range, "activation": head.activation}
    (target / "config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")


def load_head(folder: str | Path) -> EmbeddingHead:
    """The head of a folder.

    Args:
        folder: holds `head.safetensors` (layers.0.weight, layers.0.bias, …) and `config.json` with `encoder`, `layers`,
            `range` (two numbers or null) and, unless it is `none`, `activation`.

    Raises:
        InputError: a file is missing or damaged, or the two do not fit each other.
    """
    source = Path(folder)
    try:
        config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
        limits = tuple(config["range"]) if config["range"] else None
        head = EmbeddingHead(config["encoder"], config["layers"], limits, config.get("activation", "none"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(source)!r} is no folder of a head ({type(error).__name__}: {error}); it needs {FILE} and a "
            f'config.json such as {{"encoder": "shapes/clip", "layers": [64, 32, 1], "range": [1, 10]}}'
        ) from error
    load_exactly(head, read_tensors(source / FILE), str(source))
    return head.eval().requires_grad_(False)


def head_of_tensors(tensors: Mapping[str, Tensor], encoder: str, source: str) -> EmbeddingHead:
    """A head without activations from numbered linear layers, whatever stands before the numbers and between them.

    Args:
        tensors: `….0.weight`, `….0.bias`, `….2.weight`, … as in a Sequential with dropout in between.
        encoder: whose embeddings it reads.
        source: where the tensors come from, for the message.

    Raises:
        InputError: they are not a chain of linear layers that ends in one number.
    """
    named = {k: re.fullmatch(r"(?:.*\.)?(\d+)\.(weight|bias)", k) for k in tensors}
    found = {(int(m[1]), m[2]): tensors[k] for k, m in named.items() if m}
    numbers = sorted({number for number, _ in found})
    if (
        not found
        or len(found) < len(tensors)
        or any((n, part) not in found for n in numbers for part in ("weight", "bias"))
    ):
        raise InputError(f"{source!r} holds more or less than linear layers: {', '.join(tensors) or 'nothing'}")
    head = EmbeddingHead(encoder, [found[n, "weight"].shape[-1] for n in numbers] + [1])
    load_exactly(head, {f"layers.{numbers.index(n)}.{part}": v for (n, part), v in found.items()}, source)
    return head.eval().requires_grad_(False)


def has_head(model: str) -> bool:
    """Whether a name is a folder, or a shipped judge, with a head in it."""
    return (Path(source_of(model)) / FILE).is_file()


def open_head(model: str, weights: Weights, override: str | None) -> EmbeddingHead:
    """The head of a folder or shipped judge (`shapes/aesthetic`), or a weight file's on the encoder `model`.

    Raises:
        InputError: it cannot be loaded, or a weight file was given for a folder that has one.
    """
    if not has_head(model):
        path = fetch(weights, override)
        return head_of_tensors(read_tensors(path), model, str(path))
    if override is not None:
        raise InputError(f"{model!r} has a head of its own, but weights={override!r} came; leave one out")
    return load_head(source_of(model))


class HeadReward(EmbeddingReward):
    """A reward that is a head's number, in the head's range."""

    def __init__(self, head: EmbeddingHead) -> None:
        super().__init__(dual_encoder(head.encoder))
        self.head = head
        self.spec = replace(self.spec, range=head.range or (None, None))

    def judge(self, images: Tensor) -> Tensor:
        """The head's values (B,) of unit embeddings (B, D).

        Raises:
            InputError: the head is for embeddings of another width.
        """
        if images.shape[-1] != self.head.widths[0]:
            raise InputError(
                f"the head reads embeddings of width {self.head.widths[0]}, but {self.head.encoder!r} gives "
                f"{images.shape[-1]}; name the encoder that it was trained on"
            )
        return self.head.to(images.device)(images)
