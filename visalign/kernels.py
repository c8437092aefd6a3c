"""One denoising step as a Gaussian.

On the rectified-flow path (x = (1−σ)·x0 + σ·ε) every stochastic step of the field is one function: mean
(1−σ')·x̂0 + c·ε̂ and standard deviation `std`; a kernel is just (σ, σ', η) → (c, std). A state of a general path
x = a·x0 + s·ε is a flow state times (a+s), so the same kernels serve VP and VE schedulers: scale c and std by (a'+s').

The kernels, as floats in float64:

>>> cps(0.8, 0.6, eta=1.0).std == renoise(0.8, 0.6, eta=1.0).std == 0.6
True
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from visalign import process
from visalign.types import InputError, Levels


class Coefficients(NamedTuple):
    """c of mean = (1−σ')·x̂0 + c·ε̂, and the standard deviation of the step."""

    c: float
    std: float


Kernel = Callable[..., Coefficients]


def ode(sigma: float, sigma_next: float, *, eta: float = 0.0, sigma_max: float = 1.0) -> Coefficients:
    """The Euler step of the probability-flow ODE; η is not used."""
    return Coefficients(sigma_next, 0.0)


def _sde(sigma: float, sigma_next: float, diffusion: float) -> Coefficients:
    # Euler–Maruyama with diffusion g: c = σ' − g²h/(2σ), std = g√h.
    h = sigma - sigma_next
    return Coefficients(sigma_next - diffusion**2 * h / (2 * sigma), diffusion * math.sqrt(h))


def flow_sde(sigma: float, sigma_next: float, *, eta: float, sigma_max: float = 1.0) -> Coefficients:
    """Flow-GRPO (2505.05470), eq. 9: g = η√(σ/(1−σ)); at σ = 1, 1−σ takes the grid's next σ, `sigma_max`."""
    return _sde(sigma, sigma_next, eta * math.sqrt(sigma / (1 - (sigma if sigma < 1 else sigma_max))))


def dance_sde(sigma: float, sigma_next: float, *, eta: float, sigma_max: float = 1.0) -> Coefficients:
    """DanceGRPO (2505.07818): constant g = η."""
    return _sde(sigma, sigma_next, eta)


def wan_linear(sigma: float, sigma_next: float, *, eta: float = 1.0, sigma_max: float = 1.0) -> Coefficients:
    """Flow-GRPO's Wan 2.1 script: g = σ_max·σ, σ_max the grid's second level; η (1 there) scales it."""
    return _sde(sigma, sigma_next, eta * sigma_max * sigma)


def memoryless(sigma: float, sigma_next: float, *, eta: float = 1.0, sigma_max: float = 1.0) -> Coefficients:
    """Adjoint Matching (2409.08861): the memoryless schedule, Flow-SDE with η = √2."""
    return flow_sde(sigma, sigma_next, eta=math.sqrt(2.0), sigma_max=sigma_max)


def cps(sigma: float, sigma_next: float, *, eta: float, sigma_max: float = 1.0) -> Coefficients:
    """Coefficient-preserving sampling (2509.05952): c = σ'·cos(ηπ/2), std = σ'·sin(ηπ/2)."""
    if eta == 1.0:
        return Coefficients(0.0, sigma_next)
    return Coefficients(sigma_next * math.cos(eta * math.pi / 2), sigma_next * math.sin(eta * math.pi / 2))


def ddim(sigma: float, sigma_next: float, *, eta: float, sigma_max: float = 1.0) -> Coefficients:
    """DDIM (2010.02502), eq. 16, on the flow path: std = ησ'√(1 − σ'²(1−σ)²/(σ²(1−σ')²)), c = √(σ'² − std²)."""
    ratio = sigma_next * (1 - sigma) / (sigma * (1 - sigma_next))
    std = eta * sigma_next * math.sqrt(1 - ratio**2)
    return Coefficients(math.sqrt(sigma_next**2 - std**2), std)


def renoise(sigma: float, sigma_next: float, *, eta: float = 1.0, sigma_max: float = 1.0) -> Coefficients:
    """Full re-noising of consistency models: x' = (1−σ')·x̂0 + σ'·z; η is not used."""
    return Coefficients(0.0, sigma_next)


KERNELS: dict[str, Kernel] = {
    f.__name__: f for f in (ode, ddim, flow_sde, dance_sde, cps, renoise, wan_linear, memoryless)
}


@dataclass(frozen=True)
class Transition:
    """The distribution of one step: the rollout samples it, the loss asks it for the log-probability.

    Attributes:
        mean: (B, *S) float32.
        std: standard deviation, one float for the step.
    """

    mean: Tensor
    std: float

    def sample(self, noise: Tensor) -> Tensor:
        """Draw mean + std·noise, (B, *S)."""
        return self.mean + self.std * noise

    def log_prob(self, x_next: Tensor, *, reduction: str = "mean", temper: bool = False) -> Tensor:
        """Log p(x_next), (B,) float32.

        Args:
            x_next: (B, *S); no gradient flows into it.
            reduction: `mean` over the D latent elements (every public PPO code base) or `sum`.
            temper: drop the constants and 1/(2·std²), the units of the published CPS clip ranges.
        """
        error = (x_next.detach().float() - self.mean).square()
        if temper:
            density = -error
        else:
            density = -error / (2 * self.std**2) - math.log(self.std) - 0.5 * math.log(2 * math.pi)
        return reduce(density, reduction)

    def kl(self, other_mean: Tensor, *, reduction: str = "mean") -> Tensor:
        """KL between two steps of the same std, (B,): ‖Δmean‖²/(2·std²) (unit `true`)."""
        return reduce((self.mean - other_mean).square(), reduction) / (2 * self.std**2)


def reduce(values: Tensor, reduction: str) -> Tensor:
    """Mean or sum over all dimensions but the first, (B,)."""
    if reduction not in ("mean", "sum"):
        raise InputError(f"log-prob reduction {reduction!r} is not known; choose mean or sum")
    flat = values.flatten(1)
    return flat.mean(1) if reduction == "mean" else flat.sum(1)


def coefficients(
    kernel: Kernel, levels: Levels, index: int, eta: float, max_std: float = math.inf
) -> tuple[float, float, float]:
    """(a', c, std) of step `index` on the path of `levels`: mean = a'·x̂0 + c·ε̂.

    Args:
        kernel: one of `KERNELS`.
        levels: noise levels of the run.
        index: the step, 0 … T−1.
        eta: noise level of the kernel.
        max_std: LongCat's truncation (2510.22200): std never exceeds it and c follows from the same diffusion.
    """
    sigma = levels.sigma
    now, after = float(sigma[index]), float(sigma[index + 1])
    c, std = kernel(now, after, eta=eta, sigma_max=float(sigma[1]))
    if std > max_std:
        diffusion = max_std / math.sqrt(now - after)
        c, std = _sde(now, after, diffusion)
    scale = float(levels.a[index + 1] + levels.s[index + 1])
    return float(levels.a[index + 1]), c * scale, std * scale


def transition(
    kernel: Kernel, levels: Levels, index: int, x: Tensor, output: Tensor, *, eta: float, max_std: float = math.inf
) -> Transition:
    """The step's distribution from the state and the denoiser's output.

    Args:
        kernel: one of `KERNELS`.
        levels: noise levels of the run.
        index: the step.
        x: state (B, *S) float32.
        output: denoiser's output (B, *S), guidance already applied.
        eta: noise level of the kernel.
        max_std: see `coefficients`.
    """
    a_next, c, std = coefficients(kernel, levels, index, eta, max_std)
    a, s = levels.a[index].float(), levels.s[index].float()
    x0, eps = process.x0_eps(x, output, a, s, levels.prediction, levels.scaled_input)
    return Transition(a_next * x0 + c * eps, std)


def step_weight(name: str, levels: Levels, index: int, std: float) -> float:
    """Weight of a step's policy loss before normalisation over the trained steps.

    `none`; `std` (TempFlow-GRPO, 2508.04324); `std_over_dt` (GRPO-Guard 2510.22319, LongCat 2510.22200);
    `inverse_dt`, what GRPO-Guard divides by beside its normalised ratio.
    """
    dt = float(levels.sigma[index] - levels.sigma[index + 1])
    weights = {"none": 1.0, "std": std, "std_over_dt": std / dt, "inverse_dt": 1 / dt}
    if name not in weights:
        raise InputError(f"step weight {name!r} is not known; choose one of {', '.join(weights)}")
    return weights[name]


def clip_in_nats(clip: float, latent_elements: int, reduction: str) -> float:
    """Size of a ratio clip in nats of the true log-ratio: a mean over D elements hides a factor D."""
    return clip * latent_elements if reduction == "mean" else clip


def excess_noise(kernel: Kernel, levels: Levels, index: int, eta: float) -> float:
    """c² + std² − s'²: 0 for CPS and DDIM, O(h²) for the SDE kernels."""
    _, c, std = coefficients(kernel, levels, index, eta)
    return c**2 + std**2 - float(levels.s[index + 1]) ** 2


def grid(levels: Levels) -> list[float]:
    """The σ grid, rounded for printing."""
    return [round(float(v), 4) for v in torch.as_tensor(levels.sigma)]
