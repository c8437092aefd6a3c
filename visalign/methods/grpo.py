"""GRPO on denoising steps: Flow-GRPO (2505.05470), with the parts of DanceGRPO (2505.07818), MixGRPO (2507.21802),
Flow-GRPO-Fast, GRPO-Guard (2510.22319), TempFlow-GRPO (2508.04324) and Flow-DPPO (2606.11025) as options.

    L = mean max(−A·ρ, −A·clip(ρ, 1−ε, 1+ε))·w + β·KL

The kernel, the window and the advantages are not this file's: they are `rollout` and `advantage` in the config. Step
weights are normalised to mean 1 over the steps that may be trained, where the papers leave them raw.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from visalign.kernels import reduce
from visalign.methods.base import Loss, ReverseView, TrajectoryMethod
from visalign.section import Section


class GRPOConfig(Section):
    """Options of `grpo`."""

    name: Literal["grpo"] = "grpo"
    clip: float = Field(1e-4, gt=0)
    """Half width of the ratio's clip; with `mean` log-probs it hides a factor D (its size in nats is printed)."""
    ratio: Literal["plain", "normalised"] = "plain"
    """exp(Δlog p), or GRPO-Guard's, whose log-ratio has mean 0 and the same variance at every step."""
    objective: Literal["clip", "dppo"] = "clip"
    """PPO's clip, or Flow-DPPO's mask on the exact KL to the policy that acted."""
    tau: float = Field(1e-5, gt=0)
    """`dppo`: the KL per latent element from which steps further away are dropped."""
    step_weight: Literal["none", "std", "std_over_dt", "inverse_dt"] = "none"
    """Weight of each step's policy loss; GRPO-Guard's gradient balance is `inverse_dt`."""
    beta: float = Field(0.0, ge=0)
    """Weight of the KL to the reference (adapters off)."""
    kl: Literal["true", "legacy_std", "x_mse", "v_mse"] = "true"
    """Unit of the KL; published β of Flow-GRPO's image scripts (0.04, 0.01) are in `legacy_std`."""
    reduction: Literal["mean", "sum"] = "mean"
    """Log-probabilities over the latent elements; every public code base takes the mean."""
    temper: bool = False
    """CPS units: drop the constants and 1/(2·std²) from the log-probability, as the published CPS clips assume."""


def plain_ratio(view: ReverseView, log_prob: Tensor) -> Tensor:
    """exp(log p − log p_old), (B,)."""
    assert view.step.log_prob is not None
    return (log_prob - view.step.log_prob).exp()


def normalised_ratio(view: ReverseView, log_prob: Tensor) -> Tensor:
    """GRPO-Guard, eq. 8: exp((Δlog p + mean(Δμ²)/(2·std²))·std) = exp(mean(z·Δμ)), (B,)."""
    assert view.step.log_prob is not None
    assert view.step.mean is not None
    bias = reduce((view.transition.mean - view.step.mean).square(), "mean") / (2 * view.transition.std**2)
    return ((log_prob - view.step.log_prob + bias) * view.transition.std).exp()


RATIOS = {"plain": plain_ratio, "normalised": normalised_ratio}


def true_kl(view: ReverseView) -> Tensor:
    """mean(Δμ²)/(2·std²), (B,)."""
    return view.transition.kl(view.others["reference"].mean)


def legacy_std_kl(view: ReverseView) -> Tensor:
    """mean(Δμ²)/(2·g²) = dt·true, the unit of Flow-GRPO's image scripts, (B,)."""
    return view.dt * true_kl(view)


def x_mse_kl(view: ReverseView) -> Tensor:
    """mean(Δμ²), (B,)."""
    return reduce((view.transition.mean - view.others["reference"].mean).square(), "mean")


def v_mse_kl(view: ReverseView) -> Tensor:
    """Mean squared difference of the denoiser's outputs, (B,)."""
    return reduce((view.output.float() - view.other_outputs["reference"].float()).square(), "mean")


KL_UNITS = {"true": true_kl, "legacy_std": legacy_std_kl, "x_mse": x_mse_kl, "v_mse": v_mse_kl}


def clipped(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's pessimistic surrogate, (B,): max(−A·ρ, −A·clip(ρ))."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def ppo_rows(view: ReverseView, ratio: Tensor, config: GRPOConfig) -> Tensor:
    """The clipped surrogate of a view, (B,)."""
    return clipped(ratio, view.advantages, config.clip)


def dppo_rows(view: ReverseView, ratio: Tensor, config: GRPOConfig) -> Tensor:
    """Flow-DPPO: −A·ρ, without the rows whose KL to the acting policy has reached τ and that move further away, (B,).

    What corrects the policy always counts.
    """
    assert view.step.mean is not None
    far = view.transition.kl(view.step.mean).detach() >= config.tau
    away = view.advantages * (ratio.detach() - 1) > 0
    return torch.where(far & away, 0.0, -view.advantages * ratio)


OBJECTIVES = {"clip": ppo_rows, "dppo": dppo_rows}


class GRPO(TrajectoryMethod):
    """Group-relative policy optimisation on stored stochastic steps."""

    Config = GRPOConfig

    def __init__(self, config: GRPOConfig) -> None:
        self.config = config
        self.needs = frozenset({"reference"} if config.beta else ())
        self.keep_mean = config.ratio == "normalised" or config.objective == "dppo"
        self.reduction, self.temper, self.step_weight = config.reduction, config.temper, config.step_weight
        self.ratio, self.kl, self.objective = RATIOS[config.ratio], KL_UNITS[config.kl], OBJECTIVES[config.objective]

    def loss(self, view: ReverseView) -> Loss:
        """The clipped surrogate of one step plus the KL, (B,)."""
        config = self.config
        assert view.step.x_next is not None
        log_prob = view.transition.log_prob(view.step.x_next, reduction=config.reduction, temper=config.temper)
        ratio = self.ratio(view, log_prob)
        rows = view.weight * self.objective(view, ratio, config)
        metrics = {
            "ratio": ratio.detach(),
            "ratio_deviation": (ratio.detach() - 1).abs(),
            "clip_fraction": ((ratio.detach() - 1).abs() > config.clip).float(),
        }
        if config.beta:
            kl = self.kl(view)
            rows = rows + config.beta * kl
            metrics["kl"] = kl.detach()
        return Loss(rows, metrics)
