"""A pipeline as the sampler of a search."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as computed_again

from visalign.search.base import Sampler
from visalign.types import Conditioning, InputError, Media

if TYPE_CHECKING:
    from visalign.pipelines.pipeline import Pipeline


class PipelineSampler(Sampler):
    """Plain sampling by a pipeline's own scheduler, with gradients from the pixels to the initial noise where asked.

    Args:
        pipeline: the model.
        conditioning: all prompts, with guidance and the call's arguments.
        num_steps: denoising steps.
    """

    def __init__(self, pipeline: Pipeline, conditioning: Conditioning, num_steps: int) -> None:
        self.pipeline, self.conditioning, self.num_steps = pipeline, conditioning, num_steps
        self.prompts = conditioning.prompts
        one = conditioning.take([0])
        self.calls = len(pipeline.levels(one, num_steps))
        self.scale = pipeline.noise_scale(one, num_steps)

    def noise(self, prompts: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """The noise that rows of these seeds start from, (K, *S) float32 of unit variance, on the CPU.

        Raises:
            InputError: the pipeline starts from something else, such as a noised picture.
        """
        noise = self.pipeline.noise(self.conditioning.take(prompts), seeds, self.num_steps).cpu() / self.scale
        power = float(noise.square().mean())
        if abs(power - 1) > 6 * math.sqrt(2 / noise.numel()):
            raise InputError(
                f"{self.pipeline.name} starts from a state of variance {power:.2f}, not from noise of variance 1 (a "
                f"picture or first frame is in it), so its noise cannot be moved alone; use method best_of_n"
            )
        return noise

    def media(
        self, prompts: Sequence[int], seeds: Sequence[int], noise: Tensor | None, *, grad: bool, checkpoint: bool
    ) -> Media:
        """Samples of K rows: see `Sampler.media`."""
        initial = None if noise is None else noise.to(self.pipeline.device) * self.scale
        with checkpointed(self.pipeline.denoisers.values() if grad and checkpoint else ()):
            media = self.pipeline.rollout(
                self.conditioning.take(prompts), seeds, self.num_steps,
                grad_from=0 if grad else None, initial=initial,
            ).media  # fmt: skip
        assert media is not None
        return media


@contextmanager
def checkpointed(modules: Collection[nn.Module]) -> Iterator[None]:
    """Modules that keep no activations of their calls while this lasts: backward computes those of one call at a time.

    Args:
        modules: denoisers.
    """
    held = [(vars(module), vars(module).get("forward")) for module in modules]
    for module in modules:
        vars(module)["forward"] = _forgetful(module.forward)
    try:
        yield
    finally:
        for attributes, forward in held:
            del attributes["forward"]
            attributes |= {} if forward is None else {"forward": forward}


def _forgetful(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)  # pipelines look at the signature
    def call(*args: Any, **kwargs: Any) -> Any:
        # Copies: Kandinsky 5 writes the next state into this one, and it is read once more in the backward pass.
        args = tuple(_copied(a) for a in args)
        return computed_again(forward, *args, use_reentrant=False, **{k: _copied(v) for k, v in kwargs.items()})

    return call


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.requires_grad else value
