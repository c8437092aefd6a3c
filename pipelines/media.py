"""From what a pipeline returns to Media, and conditioning images that are encoded the same way each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from visalign.types import Media, RunError


def media_of(output: Any, fps: float) -> Media:
    """Media from a pipeline's `output_type="pt"`: images (B, C, H, W) or videos (B, F, C, H, W).

    Args:
        output: a tensor, or a list of one a row.
        fps: frames a second, for videos.

    Raises:
        RunError: if gradients are recorded and every pixel is saturated, so that none would pass the clamp to [0, 1].
    """
    pixels = (output if isinstance(output, Tensor) else torch.stack(list(output))).float()
    if pixels.requires_grad and not ((pixels > 0) & (pixels < 1)).any():
        raise RunError(
            "every pixel of the decoded output is 0 or 1, so no gradient passes the clamp to [0, 1]; the model has "
            "diverged: lower the learning rate, or start from an earlier checkpoint"
        )
    return Media.of_images(pixels) if pixels.ndim == 4 else Media(pixels, fps)


@contextmanager
def mean_posterior(pipe: Any) -> Iterator[None]:
    """Lets the autoencoder encode to the mean of its posterior while this lasts.

    Some pipelines sample the latents of their conditioning image; a replay must see those of the rollout.

    Args:
        pipe: any diffusers pipeline.
    """
    vae = pipe.components.get("vae")
    if vae is None:
        yield
        return
    original, held = vae.encode, vars(vae).get("encode")

    def encode(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        posterior = result[0]
        if not isinstance(posterior, Tensor):
            posterior.std = torch.zeros_like(posterior.mean)
        return result

    vars(vae)["encode"] = encode
    try:
        yield
    finally:
        del vars(vae)["encode"]
        if held is not None:
            vars(vae)["encode"] = held
