"""The state of a pipeline's loop: one tensor, or two where sound is denoised along with the video."""

from __future__ import annotations

import torch
from torch import Tensor

from visalign.types import InputError


class LoopState:
    """What the loop holds now; two streams (LTX-2) are joined in rows, (B, N + M), so that states stay one tensor.

    Attributes:
        streams: how many tensors the loop carries.
        parts: those that are known by now.
    """

    def __init__(self, streams: int) -> None:
        self.streams = streams
        self.parts: list[Tensor] = []

    @property
    def complete(self) -> bool:
        """Whether every stream has begun."""
        return len(self.parts) == self.streams

    @property
    def joined(self) -> Tensor:
        """The whole state, (B, *S) for one stream, (B, N + M) for two."""
        return self.parts[0] if self.streams == 1 else torch.cat([part.flatten(1) for part in self.parts], dim=1)

    def put(self, stream: int, natural: Tensor, given: Tensor | None) -> Tensor:
        """Notes the state of one stream.

        Args:
            stream: 0 is the one that has likelihoods.
            natural: what the pipeline made itself.
            given: whole state to stand there instead.

        Returns:
            What stands there now, with the shape and dtype of `natural`; graphs are kept.
        """
        state = natural if given is None else fitted(self._part(stream, natural, given), natural)
        self.parts[stream:] = [state, *self.parts[stream + 1 :]]
        return state

    def _part(self, stream: int, natural: Tensor, given: Tensor) -> Tensor:
        if self.streams == 1:
            return given
        begin = sum(part[0].numel() for part in self.parts[:stream])
        return given[:, begin : begin + natural[0].numel()].unflatten(1, natural.shape[1:])


def fitted(state: Tensor, like: Tensor) -> Tensor:
    """A copy of a state with the dtype and device of another; keeps its graph.

    Args:
        state: (B, *S).
        like: (B, *S).

    Raises:
        InputError: if the shapes differ.
    """
    if state.shape != like.shape:
        raise InputError(
            f"a state of shape {tuple(state.shape)} was given, but this call holds {tuple(like.shape)}; "
            "use the conditioning (size, frames, batch) that the state was made with"
        )
    return state.to(like.device, like.dtype).clone()
