"""Noise levels of schedulers and conversions between x0, ε, v and score on the path x = a·x0 + s·ε.

Three kinds of path: flow (a = 1−σ, s = σ), variance preserving (a = √ᾱ, s = √(1−ᾱ)) and variance exploding (a = 1,
s = σ, the denoiser sees x/√(1+σ²)). Levels are read from the scheduler after the pipeline has set them and never
computed again: SD3 and Wan shift twice (diffusers issue 13243).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visalign.types import InputError, Levels


def path_kind(scheduler: Any) -> str:
    """`flow`, `ve` or `vp`, told from the scheduler's class and config."""
    config = scheduler.config
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") in ("flow_prediction", "flow")
    if flow or "FlowMatch" in type(scheduler).__name__:
        return "flow"
    return "ve" if "is_scale_input_called" in vars(scheduler) else "vp"


def read_levels(scheduler: Any) -> Levels:
    """The levels of a scheduler whose `set_timesteps` has run.

    Returns:
        Levels with a, s of shape (T+1,) in float64.
    """
    kind, timesteps = path_kind(scheduler), scheduler.timesteps
    if kind == "vp":
        return _vp_levels(scheduler, timesteps)
    s = torch.as_tensor(scheduler.sigmas).double().cpu()
    if kind == "flow":
        # Mochi counts the signal, and its denoiser returns x0 − ε.
        inverted = scheduler.config.get("invert_sigmas", False)
        return Levels(s, 1 - s, timesteps, "reverse_flow") if inverted else Levels(1 - s, s, timesteps, "flow")
    return Levels(torch.ones_like(s), s, timesteps, scheduler.config.prediction_type, scaled_input=True)


def _vp_levels(scheduler: Any, timesteps: Tensor) -> Levels:
    bars = _vp_bars(scheduler, timesteps.long().cpu())
    return Levels(bars.sqrt(), (1 - bars).sqrt(), timesteps, scheduler.config.prediction_type)


def _vp_bars(scheduler: Any, timesteps: Tensor) -> Tensor:
    held = vars(scheduler)
    if "sigmas" in held:  # DPM and its kin: σ/√(1+σ²) of a variance-exploding table
        return 1 / (1 + torch.as_tensor(held["sigmas"]).double().cpu() ** 2)
    # The others step by a constant stride; below 0 DDIM uses its own final ᾱ. LCM's last step ends at x̂0.
    table = scheduler.alphas_cumprod.double().cpu()
    last = int(timesteps[-1]) - scheduler.config.num_train_timesteps // len(timesteps)
    final = torch.as_tensor(held.get("final_alpha_cumprod", 1.0)).double().cpu()
    if "LCM" in type(scheduler).__name__:
        end = torch.ones_like(final)
    else:
        end = table[last] if last >= 0 else final
    return torch.cat([table[timesteps], end.view(1)])


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """A coefficient, () or (B,), in the dtype, device and rank of `like` (B, *S)."""
    value = value.to(like.device, like.dtype)
    return value if value.ndim == 0 else value.view(-1, *([1] * (like.ndim - 1)))


def x0_eps(
    x: Tensor, output: Tensor, a: Tensor, s: Tensor, prediction: str, scaled_input: bool = False
) -> tuple[Tensor, Tensor]:
    """Clean-sample and noise predictions (x̂0, ε̂) from a denoiser's output.

    Args:
        x: state (B, *S), float32.
        output: the denoiser's output (B, *S).
        a: signal coefficient, () or (B,).
        s: noise coefficient, () or (B,).
        prediction: see `Levels.prediction`.
        scaled_input: see `Levels.scaled_input`.

    Returns:
        x̂0 and ε̂, each (B, *S) float32, with x = a·x̂0 + s·ε̂.
    """
    x, output, a, s = x.float(), output.float(), per_sample(a, x), per_sample(s, x)
    if prediction == "reverse_flow":
        output, prediction = -output, "flow"
    if prediction == "flow":
        return x - s * output, x + a * output
    if prediction == "epsilon":
        return (x - s * output) / a, output
    if prediction == "sample":
        return output, (x - a * output) / s
    if prediction == "v_prediction":
        norm = (a * a + s * s).sqrt() if scaled_input else torch.ones_like(a)
        x0 = (a * x / norm - s * output) / norm
        return x0, (x - a * x0) / s
    raise InputError(
        f"prediction type {prediction!r} is not known; known are flow, reverse_flow, epsilon, v_prediction, sample"
    )


def target(x0: Tensor, eps: Tensor, a: Tensor, s: Tensor, prediction: str) -> Tensor:
    """What the denoiser should have returned for x = a·x0 + s·ε, (B, *S)."""
    if prediction == "flow":
        return eps - x0
    if prediction == "reverse_flow":
        return x0 - eps
    if prediction == "epsilon":
        return eps
    if prediction == "sample":
        return x0
    a, s = per_sample(a, x0), per_sample(s, x0)
    norm = (a * a + s * s).sqrt()
    return (a * eps - s * x0) / norm


def add_noise(x0: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """x = a·x0 + s·ε, (B, *S)."""
    return per_sample(a, x0) * x0 + per_sample(s, x0) * eps


def score(eps: Tensor, s: Tensor) -> Tensor:
    """∇ log p(x) = −ε̂/s, (B, *S)."""
    return -eps / per_sample(s, eps)
