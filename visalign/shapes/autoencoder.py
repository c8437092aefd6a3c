"""Train the autoencoder on rendered scenes, and measure the shift and scale that make its latents standard."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn

from visalign.shapes.models import Autoencoder
from visalign.shapes.recipe import Recipe
from visalign.shapes.render import render
from visalign.shapes.scenes import CATEGORIES, Scene, describe, place

Progress = Callable[[str, int, int, float], None]
"""Called with the stage's name, steps done, steps in all and the loss."""

_WARMUP = 50
_COLOR_GAIN = 2.0
_COLOR_CENTER = 0.7
_BATCH = 128


def sample_scenes(count: int, rng: Random) -> list[Scene]:
    """Scenes of all six categories in equal parts."""
    return [place(describe(CATEGORIES[i % len(CATEGORIES)], rng), rng) for i in range(count)]


def one_cycle(step: int, steps: int, warmup: int) -> float:
    """A factor for the learning rate: up in a line over `warmup` steps, down to zero along a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_autoencoder(vae: Autoencoder, recipe: Recipe, progress: Progress) -> None:
    """Fit in place on fresh scenes at every step; pixels are mapped to [-1, 1] as pipelines do.

    Afterwards `vae.config` holds the shift and scaling factor measured on 2,048 other scenes.
    """
    spec, rng = recipe.autoencoder, Random(recipe.seed)
    torch.manual_seed(recipe.seed)
    vae.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, spec.steps, _WARMUP))
    for step in range(spec.steps):
        pixels = render(sample_scenes(spec.batch, rng), recipe.size, seed=rng.getrandbits(62)) * 2 - 1
        loss = _loss(vae, pixels.to(memory_format=torch.channels_last), recipe)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress("autoencoder", step + 1, spec.steps, loss.item())
    vae.eval()
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    latents = encode(vae, render(sample_scenes(2048, rng), recipe.size, seed=rng.getrandbits(62)), recipe.autocast)
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=1 / float(latents.std()))


def _loss(vae: Autoencoder, pixels: Tensor, recipe: Recipe) -> Tensor:
    """Absolute and squared error, a light pull of the posterior towards a unit Gaussian, and a pull towards colours.

    The first three latents are drawn to the mean colour of their pixels. Left alone, the encoder winds all colours onto
    one curve, where red lies between orange and purple, and a flow that is a little off paints another colour.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
    error = decoded.float() - pixels
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    color = _COLOR_GAIN * (nn.functional.adaptive_avg_pool2d(pixels, mean.shape[-2:]) - _COLOR_CENTER)
    fidelity = error.abs().mean() + error.square().mean()
    spec = recipe.autoencoder
    return fidelity + spec.kl_weight * divergence + spec.color_weight * (mean[:, :3] - color).square().mean()


@torch.no_grad()
def encode(vae: Autoencoder, pixels: Tensor, autocast: bool = False) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 1] → shifted and scaled latents (B, C, h, w) float32, posterior means."""
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        means = [vae.encode(chunk * 2 - 1).latent_dist.mean.float() for chunk in pixels.split(_BATCH)]
    return (torch.cat(means) - shift) * scale


@torch.no_grad()
def decode(vae: Autoencoder, latents: Tensor) -> Tensor:
    """The way back from `encode`: (B, C, h, w) → pixels (B, 3, H, W) in [0, 1] float32."""
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    images = [vae.decode(chunk / scale + shift).sample for chunk in latents.split(_BATCH)]
    return (torch.cat(images).float() / 2 + 0.5).clamp(0, 1)
