"""Joint attention in which one text token stands for many equal ones: what training needs to be fast.

SD3 without a T5 appends `max_sequence_length` zero tokens to the words (256 unless the caller says less). Text tokens
have no positions, so these stay equal to each other in every layer, and n equal keys weigh as much as one key whose
logit is raised by log n. Training therefore carries one of them, and draws n, so that a model works for any length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F


class CountedNullAttention:
    """The joint attention of SD3 with the last text token counted n times; `bias` is log n."""

    def __init__(self) -> None:
        self.bias = torch.zeros(())

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None
    ) -> tuple[Tensor, Tensor]:
        """Image tokens (B, N, D) and text tokens (B, L, D) → the same after attention over both."""
        own = _heads(attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        words = _heads(attn, encoder_hidden_states, added, (attn.norm_added_q, attn.norm_added_k))
        query, key, value = (torch.cat(pair, dim=2) for pair in zip(own, words, strict=True))
        mask = F.pad(self.bias.to(query.dtype).reshape(1, 1, 1, 1), (key.shape[2] - 1, 0))
        mixed = _attend(query, key, value, mask).transpose(1, 2).flatten(2)
        image, text = mixed.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


def _heads(attn: Attention, tokens: Tensor, maps: Sequence[nn.Module], norms: Sequence[Any]) -> list[Tensor]:
    """Query, key and value of some tokens, each (B, heads, N, head_dim); the first two normalised."""
    query, key, value = (m(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for m in maps)
    return [norms[0](query), norms[1](key), value]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    # In float32 even under autocast: the CPU kernel for bfloat16 is five times slower.
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask.float())


def install(transformer: Any) -> CountedNullAttention:
    """Give every block of an SD3 transformer the same processor; see `set_null_count`."""
    processor = CountedNullAttention()
    transformer.set_attn_processor(processor)
    return processor


def set_null_count(processor: CountedNullAttention, count: float) -> None:
    """Let the last text token stand for `count` tokens."""
    processor.bias = torch.tensor(math.log(count))
