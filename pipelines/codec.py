"""Pixels to loop states, for any pipeline: its own decoding run backwards.

Between its loop and its autoencoder a pipeline only moves, scales and shifts numbers (unpacking, patches, scaling
factors, means): z = D·P·x + c with D diagonal and P a permutation. The map is seen by ending a run at `vae.decode`, and
its inverse needs no code for any model: with J = D·P, JᵀJ is diagonal, so x = Jᵀ(z − c) / JᵀJ1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from visalign.types import InputError, Media


class _Decoding(Exception):
    """Ends a run at the decoder."""


def decoder_input(vae: Any, decode: Callable[[], Any]) -> Tensor:
    """What a run gives to `vae.decode`, which is not run.

    Args:
        vae: the autoencoder.
        decode: a run that ends in `vae.decode`.

    Returns:
        Latents as the autoencoder sees them, (B, C, …).
    """
    seen: list[Tensor] = []

    def note(latents: Tensor, *args: Any, **kwargs: Any) -> None:
        seen.append(latents)
        raise _Decoding

    vars(vae)["decode"] = note
    try:
        with suppress(_Decoding):
            decode()
    finally:
        del vars(vae)["decode"]
    return seen[0]


def autoencoder_latents(vae: Any, media: Media, ndim: int, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Encodes pixels.

    Args:
        vae: the autoencoder.
        media: B rows.
        ndim: 4 for an image autoencoder, 5 for one of videos.
        generators: one a row, to draw from the posterior; None takes its mean.

    Returns:
        Latents (B, C, …) as the autoencoder gives them.

    Raises:
        InputError: if videos come to an autoencoder of images.
    """
    weight = next(vae.parameters())
    pixels = (2 * media.pixels - 1).to(weight.device, weight.dtype)
    if ndim == 4 and pixels.shape[1] != 1:
        raise InputError(f"videos of {pixels.shape[1]} frames were given to a pipeline that makes images")
    with torch.no_grad():
        posterior = vae.encode(pixels[:, 0] if ndim == 4 else pixels.transpose(1, 2))[0]
    if isinstance(posterior, Tensor):
        return posterior
    return posterior.mean if generators is None else posterior.sample(generators)


def reconstructed(vae: Any, media: Media) -> Tensor:
    """Pixels after the autoencoder alone, (B, F, C, H, W) in [0, 1]: what `decode` after `encode` should give."""
    ndim = next(p.ndim for p in vae.parameters() if p.ndim > 3)  # of the first convolution's weight
    with torch.no_grad():
        decoded = vae.decode(autoencoder_latents(vae, media, ndim, None))[0].float()
    frames = decoded.unsqueeze(1) if ndim == 4 else decoded.transpose(1, 2)
    return (frames / 2 + 0.5).clamp(0, 1)


def to_loop(to_decoder: Callable[[Tensor], Tensor], latents: Tensor, like: Tensor) -> Tensor:
    """The loop state that is decoded as `latents`.

    Args:
        to_decoder: loop state → what the autoencoder sees of it; differentiable.
        latents: what it should see, (B, C, …).
        like: any loop state of this call, (B, *S).

    Returns:
        Loop state (B, *S) float32.

    Raises:
        InputError: if the shapes differ, or the pipeline does more on its way than to move, scale and shift.
    """
    with torch.enable_grad():
        zero = torch.zeros_like(like, dtype=torch.float32).requires_grad_()
        shift = to_decoder(zero)
        if shift.shape != latents.shape:
            raise InputError(
                f"the media encode to latents of shape {tuple(latents.shape)}, but this conditioning makes "
                f"{tuple(shift.shape)}; bring media and conditioning to one height, width and number of frames"
            )
    scale = to_decoder(torch.ones_like(zero)) - shift.detach()

    def transposed(v: Tensor) -> Tensor:
        return torch.autograd.grad(shift, zero, v.to(shift.dtype), retain_graph=True)[0]

    state, norm, residual = zero.detach(), transposed(scale), latents - shift.detach()
    for _ in range(2):  # the second time for what rounding left over
        # A norm of 0 is not decoded: padding, or where a conditioning image stands.
        state = state + torch.where(norm == 0, 0.0, transposed(residual) / norm)
        residual = torch.where(scale == 0, 0.0, latents - to_decoder(state))
    error = residual.float().abs().max() / torch.maximum(latents.abs().max(), shift.abs().max()).float()
    if error > (1e-3 if shift.dtype == torch.float32 else 2e-2):
        raise InputError(
            f"media cannot be encoded for this pipeline: its way from loop to decoder is no permutation with scale and "
            f"shift (relative error {error:.3g}); give the latents themselves"
        )
    return state
