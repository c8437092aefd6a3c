"""Penalties that keep optimised noise where the sampler was trained, and one step of its optimiser: pure functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 4
"""Numbers in one row of the concentration test (DNO's subsampling factor 1)."""


def chi_penalty(noise: Tensor) -> Tensor:
    """½‖ε‖² − (d−1)·log‖ε‖: minus the log-density of a Gaussian's norm, up to a constant (ReNO, 2406.04312).

    Its minimum is at ‖ε‖² = d − 1. It sees the norm alone, not structure: see `concentration_penalty`.

    Args:
        noise: (K, *S), d numbers a row.

    Returns:
        (K,) float32.

    Example:
        >>> at_minimum = torch.full((1, 10), 0.9**0.5).requires_grad_()
        >>> torch.autograd.grad(chi_penalty(at_minimum).sum(), at_minimum)[0].abs().max() < 1e-6
        tensor(True)
    """
    flat = noise.float().flatten(1)
    square = flat.square().sum(1)
    return 0.5 * square - 0.5 * (flat.shape[1] - 1) * square.log()


def concentration_penalty(noise: Tensor, permutations: Tensor) -> Tensor:
    """Minus the log-probability bounds that the noise is independent and standard normal (DNO, 2405.18881).

    The numbers of a row are cut into m blocks of k = 4 whose mean and second moments concentrate if they are
    independent; the same is asked of permuted numbers, averaged. Each of the four bounds is at least log 2 and flat
    there, where most noise is, so that it does not fight the reward; constant, tiled and smooth noise costs much.

    Args:
        noise: (K, *S), d numbers a row; d modulo 4 of them are left out.
        permutations: (R, d) int64 orders of the numbers; R = 0 leaves their part out.

    Returns:
        (K,) float32.

    Example:
        >>> noise = torch.randn(1, 4096, generator=torch.Generator().manual_seed(1))
        >>> orders = torch.arange(4096).flip(0)[None]
        >>> [bool(concentration_penalty(v, orders) > 4) for v in (noise, noise.sort().values, torch.ones(1, 4096))]
        [False, True, True]
    """
    flat = noise.float().flatten(1)
    penalty = -_log_bounds(flat)
    return penalty - _log_bounds(flat[:, permutations]).mean(1) if len(permutations) else penalty


def _log_bounds(numbers: Tensor) -> Tensor:
    # (…, d) → (…): the bounds of mean and second moments, each at most −log 2.
    count = numbers.shape[-1] // BLOCK
    blocks = numbers[..., : count * BLOCK].unflatten(-1, (count, BLOCK))  # (…, m, k)
    mean = blocks.mean(-2)
    excess = blocks.mT @ blocks / count - torch.eye(BLOCK, device=blocks.device)  # (…, k, k)
    spread = torch.linalg.eigvalsh(excess).abs().amax(-1)
    beyond = ((1 + spread).sqrt() - 1 - math.sqrt(BLOCK / count)).clamp(min=0)
    bounds = (-count * mean.square().sum(-1) / (2 * BLOCK), -0.5 * count * beyond.square())
    return torch.stack(bounds).clamp(max=-math.log(2)).sum(0)


def clip_rows(gradient: Tensor, limit: float) -> Tensor:
    """Each row scaled down to a norm of at most `limit`, (K, *S).

    Example:
        >>> clip_rows(torch.tensor([[3.0, 4.0], [0.0, 0.01]]), 0.1).norm(dim=1)
        tensor([0.1000, 0.0100])
    """
    norms = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.ndim - 1))
    return gradient * (limit / norms.clamp(min=1e-12)).clamp(max=1.0)


def nesterov(noise: Tensor, gradient: Tensor, velocity: Tensor, lr: float, momentum: float) -> tuple[Tensor, Tensor]:
    """One step of SGD with Nesterov momentum as torch does it: (noise, velocity), both (K, *S).

    Example:
        >>> nesterov(torch.zeros(1), torch.ones(1), torch.zeros(1), lr=1.0, momentum=0.5)
        (tensor([-1.5000]), tensor([1.]))
    """
    velocity = momentum * velocity + gradient
    return noise - lr * (gradient + momentum * velocity), velocity
