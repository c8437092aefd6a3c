"""AdamW on an adapter: schedule, gradient clipping, a guard against gradients that are not finite, exact state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from visalign.config import OptimizerConfig
from visalign.types import RunError


class Optimizer:
    """AdamW on the adapter with its schedule, gradient clipping and a guard against gradients that are not finite."""

    def __init__(
        self, parameters: dict[str, torch.nn.Parameter], schedule: Callable[[int], float], config: OptimizerConfig
    ) -> None:
        self.parameters, self.schedule, self.config, self.updates = parameters, schedule, config, 0
        self.adam = torch.optim.AdamW(
            list(parameters.values()),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )

    def step(self) -> dict[str, float]:
        """One update from the gradients that have added up.

        Raises:
            RunError: a gradient is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            raise RunError(
                f"the gradient of update {self.updates + 1} is not finite ({float(norm)}); nothing was changed by it. "
                f"Lower optimizer.lr, or use model.dtype=float32"
            )
        lr = self.config.lr * self.schedule(self.updates)
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.updates += 1
        return {"grad_norm": float(norm), "lr": lr}

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name."""
        return {
            f"{name}/{key}": torch.as_tensor(value)
            for name, parameter in self.parameters.items()
            for key, value in self.adam.state[parameter].items()
        }

    def restore(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Put moments and step counts back."""
        self.updates = updates
        for key, value in tensors.items():
            name, _, field = key.rpartition("/")
            parameter = self.parameters[name]
            place = "cpu" if field == "step" else parameter.device
            self.adam.state[parameter][field] = value.clone().to(place)


def constant(progress: float) -> float:
    """No decay."""
    return 1.0


def linear(progress: float) -> float:
    """Straight down to zero."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Half a cosine down to zero."""
    return 0.5 * (1 + math.cos(progress * math.pi))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "linear": linear, "cosine": cosine}


def learning_rate_schedule(name: str, warmup: int, total: int) -> Callable[[int], float]:
    """Update number → factor of the learning rate: a linear warm-up, then the named decay over the rest."""

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        return SCHEDULES[name](min(1.0, (update - warmup) / max(1, total - warmup)))

    return factor
