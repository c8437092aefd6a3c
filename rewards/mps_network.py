"""The network of MPS between CLIP's image tokens and prompt tokens; parameter names are the checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visalign.types import InputError


def rotate(tokens: Tensor) -> Tensor:
    """Rotary positions for tokens (…, N, D)."""
    count, width = tokens.shape[-2:]
    frequencies = 10000 ** -(torch.arange(0, width, 2, device=tokens.device) / width)
    angles = torch.arange(count, device=tokens.device)[:, None] * frequencies.repeat(2)  # (N, D)
    first, second = tokens.chunk(2, -1)
    return tokens * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Query heads (B, h, N, D) on one shared key and value head (B, M, D), (B, N, h·D); `mask` (B, M) keeps tokens."""
    key, value = (x.unsqueeze(1).expand(-1, queries.shape[1], -1, -1) for x in (keys, values))
    kept = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(queries, key, value, attn_mask=kept).transpose(1, 2).flatten(2)


class SwiGLU(nn.Module):
    """silu(second half) · first half."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, 2D) → (…, D)."""
        value, gate = x.chunk(2, -1)
        return F.silu(gate) * value


class CrossBlock(nn.Module):
    """Image tokens look at prompt tokens, beside a feed-forward layer; no biases but those of the norm."""

    def __init__(self, width: int, inner: int, head: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * head, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 2 * hidden, bias=False), SwiGLU(), nn.Linear(hidden, width, bias=False)
        )

    def forward(self, x: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D) image tokens, (B, T, D) prompt tokens, (B, T) bool → (B, N, D)."""
        normed = self.norm(x)
        keys, values = self.to_kv(texts).chunk(2, -1)
        queries = self.to_q(normed).unflatten(-1, (-1, keys.shape[-1])).transpose(1, 2)
        return x + self.to_out(attend(queries, keys, values, mask)) + self.ff(normed)


class SelfBlock(nn.Module):
    """Image tokens look at each other, with rotary positions, beside a feed-forward layer."""

    def __init__(self, width: int, inner: int, head: int, hidden: int) -> None:
        super().__init__()
        self.parts = (inner, head, head, 2 * hidden)
        self.norm = nn.LayerNorm(width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(inner, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        queries, keys, values, rest = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, -1)
        heads = queries.unflatten(-1, (-1, keys.shape[-1])).transpose(1, 2)
        return x + self.attn_out(attend(rotate(heads), rotate(keys), values)) + self.ff_out(rest)


class CrossModel(nn.Module):
    """Pairs of a cross block and a self block."""

    def __init__(self, depth: int, width: int, inner: int, head: int, hidden: int) -> None:
        super().__init__()
        sizes = (width, inner, head, hidden)
        self.layers = nn.ModuleList(nn.ModuleList([CrossBlock(*sizes), SelfBlock(*sizes)]) for _ in range(depth))

    def forward(self, images: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D) image tokens after all layers."""
        for layer in self.layers:
            cross, within = cast(nn.ModuleList, layer)
            images = within(cross(images, texts, mask))
        return images


def cross_sizes(tensors: Mapping[str, Tensor]) -> tuple[int, int, int, int, int]:
    """Depth, width, width of all query heads, of one head, and of the feed-forward layer, read off a checkpoint.

    Raises:
        InputError: the checkpoint has no such network.
    """
    first = "cross_model.layers.0.0."
    depth = sum(k.startswith("cross_model.layers.") and k.endswith(".to_q.weight") for k in tensors)
    if depth == 0:
        raise InputError(f"a checkpoint of MPS holds {first}to_q.weight, but this one has {', '.join(tensors):.200}")
    inner, width = tensors[f"{first}to_q.weight"].shape
    return depth, width, inner, len(tensors[f"{first}to_kv.weight"]) // 2, tensors[f"{first}ff.2.weight"].shape[1]
