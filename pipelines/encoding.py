"""`encode_prompt` remembered prompt by prompt, so that text encoders run once a text and can leave."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visalign.types import InputError, RunError

PLAIN = (type(None), bool, int, float, str, torch.device, torch.dtype)


class PromptMemo:
    """Answers one pipeline's `encode_prompt` from memory.

    Each unique text is encoded alone and kept on the CPU, so its embedding does not depend on what else was in the
    batch. A text is known by its words and all other arguments; calls that hold tensors (given embeddings, pictures to
    be described along with the text) are not remembered.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.forgotten = pipe, False
        self._known: dict[Hashable, Any] = {}

    def patches(self) -> dict[str, Callable]:
        """The method that stands for the pipeline's own; none where the pipeline has none."""
        return {"encode_prompt": self.encode_prompt} if "encode_prompt" in dir(type(self.pipe)) else {}

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """The same arguments and results as the pipeline's own."""
        original = type(self.pipe).encode_prompt
        bound = _signature(original).bind(self.pipe, *args, **kwargs)
        prompt = bound.arguments.get("prompt")
        if prompt is None or not all(_plain(v) for k, v in bound.arguments.items() if k != "self"):
            with torch.no_grad():
                return original(*bound.args, **bound.kwargs)
        rows = 1 if isinstance(prompt, str) else len(prompt)
        encoded = [self._row(original, _of_row(bound.arguments, row, rows)) for row in range(rows)]
        return _moved(stacked(encoded), bound.arguments.get("device") or self.pipe._execution_device)

    def _row(self, original: Callable, arguments: dict[str, Any]) -> Any:
        key = tuple((name, repr(value)) for name, value in arguments.items() if name != "self")
        if key not in self._known:
            if self.forgotten:
                raise RunError(
                    f"the prompt {arguments['prompt']} was not encoded before the text encoders were freed; encode all "
                    "prompts first, or keep the text encoders"
                )
            with torch.no_grad():
                self._known[key] = _moved(original(**arguments), torch.device("cpu"))
        return self._known[key]

    def forget_text_encoders(self) -> None:
        """Takes the text encoders out of the pipeline."""
        for name, component in self.pipe.components.items():
            if name.startswith("text_encoder") and isinstance(component, nn.Module):
                setattr(self.pipe, name, None)
        self.forgotten = True


_signature = functools.cache(inspect.signature)


def _plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, list | tuple) and all(isinstance(v, PLAIN) for v in value))


def _of_row(arguments: Mapping[str, Any], row: int, rows: int) -> dict[str, Any]:
    # Texts come as one for each row or one for all; other lists (Sana's instructions) belong to the call.
    texts = {k: v for k, v in arguments.items() if "prompt" in k and isinstance(v, list) and len(v) == rows}
    return {**arguments, **{name: [value[row]] for name, value in texts.items()}}


def stacked(results: Sequence[Any]) -> Any:
    """Results of single-row calls of `encode_prompt` as one of a batch.

    Args:
        results: one a row: tensors with batch size 1, lists of one, None, or tuples of them.

    Returns:
        The same structure for all rows; sequences of unequal length are padded with zeros, and their mask with it.

    Raises:
        InputError: if a tensor is neither batch-first nor the same for all rows.
    """
    first = results[0]
    if isinstance(first, tuple):
        return tuple(stacked(column) for column in _with_masks(list(zip(*results, strict=True))))
    if isinstance(first, list):
        return [entry for result in results for entry in result]
    if not isinstance(first, Tensor):
        return first
    if len(first) == 1:
        return torch.cat(_padded(results))
    longest = max(results, key=len)  # position ids (L, 3) of FLUX, for any row
    if not all(torch.equal(r, longest[: len(r)]) for r in results):
        shapes = [tuple(r.shape) for r in results]
        raise InputError(
            f"encode_prompt of this pipeline returns tensors that are not batch-first, {shapes} for one prompt each; "
            "encode the prompts yourself and pass `prompt_embeds` in Conditioning.tensors"
        )
    return longest


def _with_masks(columns: list[tuple]) -> list[tuple]:
    # Qwen-Image leaves out a mask of ones, which it is for a row alone; padded, the row needs it.
    for i, (column, following) in enumerate(itertools.pairwise(columns)):
        lengths = {v.shape[1] for v in column if isinstance(v, Tensor) and v.ndim == 3}
        if len(lengths) > 1 and any(mask is None for mask in following):
            masks = zip(column, following, strict=True)
            columns[i + 1] = tuple(torch.ones_like(v[..., 0], dtype=torch.long) if m is None else m for v, m in masks)
    return columns


def _padded(tensors: Sequence[Tensor]) -> list[Tensor]:
    if tensors[0].ndim < 2:
        return list(tensors)
    length = max(t.shape[1] for t in tensors)
    return [torch.cat([t, t.new_zeros(1, length - t.shape[1], *t.shape[2:])], dim=1) for t in tensors]


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_moved(v, device) for v in value)
    return value.to(device) if isinstance(value, Tensor) else value
