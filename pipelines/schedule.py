"""The timesteps of a scheduler while a run lasts: all of them, and those that are visited."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from torch import Tensor

from visalign.process import path_kind, read_levels
from visalign.types import InputError, Levels


class Schedule:
    """What a scheduler holds after `set_timesteps`, and which part of it the pipeline is shown.

    Attributes:
        levels: noise levels of the full run.
        indices: positions in the full run that are visited, in order.
    """

    def __init__(self, scheduler: Any, timesteps: Tensor, only: Sequence[int] | None, start: int) -> None:
        """Reads the levels, then leaves only the chosen steps in the scheduler.

        Args:
            scheduler: any diffusers scheduler whose `set_timesteps` has run.
            timesteps: those the pipeline is about to walk; image-to-image leaves out the first ones.
            only: positions to visit; None is all of them.
            start: where `only` is None, the first to visit.
        """
        held = vars(scheduler)
        self.scheduler, self.timesteps, self.sigmas = scheduler, held["timesteps"], held.get("sigmas")
        self.offset = len(self.timesteps) - len(timesteps)
        full = read_levels(scheduler)
        self.levels = Levels(
            full.a[self.offset :], full.s[self.offset :], timesteps, full.prediction, full.scaled_input
        )
        every = range(len(timesteps))
        self.indices = list(every[start:]) if only is None else [every[i] for i in only]
        if self.indices != list(range(len(self.timesteps))):
            self._show([self.offset + i for i in self.indices])

    def _show(self, positions: list[int]) -> None:
        held = vars(self.scheduler)
        held["timesteps"] = self.timesteps[positions]
        if isinstance(self.sigmas, Tensor) and positions:
            held["sigmas"] = self.sigmas[[*positions, positions[-1] + 1]]
        if "_begin_index" in held:
            held["_begin_index"] = 0

    @contextmanager
    def whole(self, visited: int) -> Iterator[None]:
        """The scheduler as in the full run, about to make the step that is visited as number `visited`."""
        held = vars(self.scheduler)
        shown = {name: held[name] for name in ("timesteps", "sigmas") if name in held}
        held.update(zip(shown, (self.timesteps, self.sigmas), strict=False))
        self.set_step(self.offset + self.indices[visited])
        try:
            yield
        finally:
            held.update(shown)

    def set_step(self, position: int) -> None:
        """Tells a scheduler that counts its steps where it stands."""
        if "_step_index" in vars(self.scheduler):
            self.scheduler._step_index = position

    def noise_of(self, timesteps: Tensor) -> Tensor:
        """The noise coefficient of each row, (B,) float64, or of all, (1,).

        Args:
            timesteps: timesteps of this schedule, (B,) or ().

        Raises:
            InputError: if one of them is not on the schedule.
        """
        told = timesteps.double().cpu().reshape(-1, 1)
        distance = (self.levels.timesteps.double().cpu() - told).abs()
        nearest = distance.min(dim=1)
        if nearest.values.max() > 1e-3:
            raise InputError(
                f"timesteps {timesteps.tolist()} are not on the schedule, by which this scheduler scales its input; "
                "take them from Pipeline.levels(conditioning, num_steps).timesteps of the same num_steps"
            )
        return self.levels.s[nearest.indices]


@functools.cache
def tapped(kind: Any) -> Any:
    """A subclass that hands `set_timesteps` and `step` to the instance's `_tap`; tapped already, itself.

    Args:
        kind: a scheduler class, or one that came from here (a run nested in another).

    Returns:
        The subclass. It bears the same name, since some code tells schedulers apart by name.
    """
    # Cached, or each run would leave a class behind.
    if "untapped" in vars(kind):
        return kind
    signature = inspect.signature(kind.step)

    @functools.wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._tap.step(self, signature.bind(self, *args, **kwargs))

    @functools.wraps(kind.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.set_timesteps(self, *args, **kwargs)
        self._tap.after_set(self)

    members = {"step": step, "set_timesteps": set_timesteps, "untapped": kind}
    if "scale_model_input" in dir(kind):
        members["scale_model_input"] = _scaling(kind)
    return type(kind.__name__, (kind,), members)


def _scaling(kind: Any) -> Callable:
    @functools.wraps(kind.scale_model_input)
    def scale_model_input(self: Any, sample: Tensor, timestep: Any = None) -> Tensor:
        if self._tap.plan.timesteps is None or path_kind(self) != "ve":
            return kind.scale_model_input(self, sample, timestep)
        return _scaled_input(sample, self._tap.schedule.noise_of(timestep))

    return scale_model_input


def _scaled_input(sample: Tensor, s: Tensor) -> Tensor:
    # x/√(1+s²) with a level a row; the schedulers themselves know one level for all rows.
    rows = s.to(sample.device, torch.float32).view(-1, *[1] * (sample.ndim - 1))
    return (sample / (1 + rows * rows).sqrt()).to(sample.dtype)


# Attributes in which multistep schedulers keep what they saw at the steps before.
HISTORY = {"model_outputs", "lower_order_nums", "ets", "derivatives"}
NOISY = ("LCM", "TCD", "DDPM", "Ancestral", "SDE")


def why_not_replayable(scheduler: Any) -> str:
    """Why a stored state cannot be stepped again on its own; empty where it can.

    Args:
        scheduler: any diffusers scheduler.

    Returns:
        The reason, with what to use instead.
    """
    name = type(scheduler).__name__
    advice = "call Pipeline.make_replayable(), which takes the deterministic scheduler of the same noise levels"
    if HISTORY & vars(scheduler).keys() or name == "CogVideoXDPMScheduler":
        return f"{name} is a multistep scheduler, its step depends on the steps before it; {advice}"
    if scheduler.order > 1:
        return f"{name} evaluates the denoiser {scheduler.order} times a step; {advice}"
    if any(part in name for part in NOISY) or scheduler.config.get("stochastic_sampling"):
        return f"{name} adds noise of its own at each step; {advice}"
    return ""


def replayable(scheduler: Any) -> Any:
    """The deterministic one-step scheduler with the noise levels of another.

    Args:
        scheduler: any diffusers scheduler.

    Returns:
        Euler for flow and variance-exploding levels, DDIM otherwise (CogVideoX's own for CogVideoX).
    """
    config, kind = scheduler.config, path_kind(scheduler)
    if kind == "flow":
        shift = config.get("shift", config.get("flow_shift", 1.0))
        return diffusers.FlowMatchEulerDiscreteScheduler.from_config(config, shift=shift, stochastic_sampling=False)
    if kind == "ve":
        return diffusers.EulerDiscreteScheduler.from_config(config)
    if "CogVideoX" in type(scheduler).__name__:
        return diffusers.CogVideoXDDIMScheduler.from_config(config)
    return diffusers.DDIMScheduler.from_config(config, clip_sample=False)
