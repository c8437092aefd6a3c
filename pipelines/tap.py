"""The tap: any diffusers pipeline driven step by step, without a denoising loop of our own.

While a run lasts, the scheduler's class is swapped for a subclass whose `step` asks `on_step`, the loop state is
injected after `prepare_latents` and after each step, and the pipeline's own `__call__` runs without its `no_grad`.

Two states must be told apart. The *loop* state is what the pipeline's loop carries from step to step; the *sample* is
what its scheduler sees. They are the same tensor for most pipelines, but LTX image-to-video steps an unpacked state
without its first frame. Loop states are injected; samples have likelihoods.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from visalign.pipelines.loop import LoopState
from visalign.pipelines.schedule import Schedule, tapped
from visalign.pipelines.steps import OnStep, Plan, StepCall
from visalign.types import InputError, Levels

__all__ = ["OnStep", "Outcome", "Plan", "StepCall", "decodes_alone", "names_used", "prepare", "preserved", "run"]


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind.

    Attributes:
        levels: noise levels of the full run.
        initial: loop state before the first visited step, (B, *S') in the loop's dtype.
        final: loop state at the end, (B, *S').
        output: the first of the pipeline's own outputs (pixels, or latents for `output_type="latent"`).
    """

    levels: Levels
    initial: Tensor
    final: Tensor
    output: Any


_signature = functools.cache(inspect.signature)


class _Prepared(Exception):
    """Ends a run of which only the beginning is wanted."""


def run(
    pipe: Any,
    call: Mapping[str, Any],
    plan: Plan,
    *,
    grad: bool = False,
    patches: Mapping[str, Any] | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Outcome:
    """One call of a pipeline under control.

    Args:
        pipe: any diffusers pipeline.
        call: arguments of its `__call__`.
        plan: what differs from the pipeline's own run.
        grad: whether autograd records from the start.
        patches: name → what stands for this attribute or method of the pipeline while the run lasts.
        generators: what `prepare_latents` draws from, where the call's own `generator` must differ.

    Returns:
        The outcome. Scheduler and pipeline are as they were, also after an exception.

    Raises:
        InputError: if a state does not fit, or the pipeline gives no way to put it in.
    """
    tap = _Tap(pipe, plan, generators)
    output = _called(tap, call, grad, patches or {})[0]
    assert tap.schedule is not None
    assert tap.loop.complete, f"{type(pipe).__name__} took no step and has no prepare_latents"
    final = tap.loop.joined
    return Outcome(tap.schedule.levels, final if tap.initial is None else tap.initial, final, output)


def prepare(pipe: Any, call: Mapping[str, Any], patches: Mapping[str, Any] | None = None) -> tuple[Levels, Tensor]:
    """The beginning of a call; the denoiser is not run.

    Args:
        pipe: any diffusers pipeline.
        call: arguments of its `__call__`.
        patches: as for `run`.

    Returns:
        Noise levels of the full run, and the loop state that it would start from.
    """
    tap = _Tap(pipe, Plan(), None, prepare_only=True)
    with suppress(_Prepared):
        _called(tap, call, False, patches or {})
    assert tap.schedule is not None, f"{type(pipe).__name__} did not set its timesteps"
    assert tap.initial is not None, f"{type(pipe).__name__} has no prepare_latents"
    return tap.schedule.levels, tap.initial


def names_used(pipe: Any) -> frozenset[str]:
    """The attributes and local names that the pipeline's `__call__` uses."""
    code = inspect.unwrap(type(pipe).__call__).__code__
    return frozenset(code.co_names) | frozenset(code.co_varnames)


def decodes_alone(pipe: Any) -> bool:
    """Whether the pipeline decodes a state that took no step; LCM decodes what its last step denoised."""
    names = names_used(pipe)
    return "denoised" not in names and ("get_timesteps" not in names or "interrupt" in names)


def _called(tap: _Tap, call: Mapping[str, Any], grad: bool, patches: Mapping[str, Any]) -> Any:
    pipe, arguments = tap.pipe, dict(call, return_dict=False)
    if tap.has_callback:
        arguments["callback_on_step_end"] = tap.after_step
    with preserved(pipe), preserved(pipe.scheduler), torch.set_grad_enabled(grad):
        vars(pipe).update(patches)
        tap.attach()
        return inspect.unwrap(type(pipe).__call__)(pipe, **arguments)


@contextmanager
def preserved(thing: Any) -> Iterator[None]:
    """Puts the class and all attributes of a pipeline or a scheduler back at the end.

    All of them, so that a run may be nested in another: pipelines keep the settings of a call in private attributes.
    """
    kind, saved = type(thing), dict(vars(thing))
    try:
        yield
    finally:
        # Offload hooks are made anew at the end of each call; the old ones are dead.
        hooks = {name: value for name, value in vars(thing).items() if name == "_all_hooks"}
        thing.__class__ = kind
        vars(thing).clear()
        vars(thing).update({**saved, **hooks})


class _Tap:
    """The state of one run; the tapped scheduler and the patched pipeline call it."""

    def __init__(
        self, pipe: Any, plan: Plan, generators: Sequence[torch.Generator] | None, prepare_only: bool = False
    ) -> None:
        self.generators = generators
        self.pipe, self.plan, self.prepare_only, self.scheduler = pipe, plan, prepare_only, pipe.scheduler
        self.names = names_used(pipe)
        self.has_callback = "callback_on_step_end" in self.names
        self.schedule: Schedule | None = None
        self.initial: Tensor | None = None
        self.loop = LoopState(2 if "prepare_audio_latents" in self.names else 1)
        self.visited = 0

    def __deepcopy__(self, memo: dict) -> _Tap:
        # LTX-2 steps its sound with a copied scheduler: another stream, which shares this tap.
        return self

    def attach(self) -> None:
        """Swaps the scheduler's class and patches the pipeline's methods; `preserved` undoes both."""
        kind: Any = type(self.scheduler)
        self.scheduler.__class__ = tapped(kind)
        self.scheduler._tap = self
        if "prepare_latents" in self.names:
            vars(self.pipe)["prepare_latents"] = partial(self.prepare, "prepare_latents", 0)
        elif self.plan.states or self.plan.final is not None:
            raise InputError(f"{type(self.pipe).__name__} has no prepare_latents, so no state can be put into it")
        if self.loop.streams == 2:
            vars(self.pipe)["prepare_audio_latents"] = partial(self.prepare, "prepare_audio_latents", 1)
        if "get_timesteps" in self.names:
            vars(self.pipe)["get_timesteps"] = self.get_timesteps

    def after_set(self, scheduler: Any) -> None:
        """Reads the schedule as soon as it is set, except where the pipeline goes on to drop its first steps."""
        if scheduler is not self.scheduler:
            Schedule(scheduler, scheduler.timesteps, self.plan.only, self.plan.start)
        elif "get_timesteps" not in self.names:
            self._settle(scheduler.timesteps)

    def get_timesteps(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own, then the chosen steps among those it leaves."""
        timesteps, *rest = type(self.pipe).get_timesteps(self.pipe, *args, **kwargs)
        self._settle(timesteps)
        return (self.scheduler.timesteps, *rest)

    def _settle(self, timesteps: Tensor) -> None:
        # Image-to-image noises its picture at the first timestep, so its loop is interrupted rather than emptied.
        interrupted = self.plan.only is not None and not self.plan.only and "get_timesteps" in self.names
        self.schedule = Schedule(self.scheduler, timesteps, None if interrupted else self.plan.only, self.plan.start)
        if interrupted:
            self.pipe._interrupt = True
        if self.plan.timesteps is not None:
            self.scheduler.timesteps = self.plan.timesteps
        self._stop_if_prepared()

    def _stop_if_prepared(self) -> None:
        if self.prepare_only and self.schedule is not None and self.initial is not None:
            raise _Prepared

    def prepare(self, method: str, stream: int, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own `prepare_latents` of one stream, its first result replaced where a state is given."""
        original = getattr(type(self.pipe), method)
        bound = _signature(original).bind(self.pipe, *args, **kwargs)
        if self.generators is not None:
            bound.arguments["generator"] = list(self.generators)
        with torch.no_grad():
            result = original(*bound.args, **bound.kwargs)
        first, *rest = result if isinstance(result, tuple) else (result,)
        state = self.loop.put(stream, first, self._given())
        if self.loop.complete:
            self.initial = self.loop.joined.clone()
            self._stop_if_prepared()
        return (state, *rest) if isinstance(result, tuple) else state

    def _given(self) -> Tensor | None:
        # The state to stand before the next visited step, or at the end. Some pipelines set their timesteps only after
        # prepare_latents; the first step is known all the same.
        visits = self.plan.only
        if visits is None:
            visits = [self.plan.start] if self.schedule is None else self.schedule.indices
        return self.plan.states.get(visits[self.visited]) if self.visited < len(visits) else self.plan.final

    def step(self, scheduler: Any, bound: inspect.BoundArguments) -> Any:
        """Asks the rule for the next sample; all arithmetic is float32, the loop keeps its dtype."""
        original, arguments, extra = scheduler.untapped.step, bound.arguments, list[Tensor]()
        if scheduler is not self.scheduler:
            return self._other_step(original(*bound.args, **bound.kwargs))
        assert self.schedule is not None
        visited, schedule, as_tuple = self.visited, self.schedule, not arguments.get("return_dict", True)
        sample, loop = self._states(arguments["sample"])
        arguments.update(model_output=arguments["model_output"].float(), sample=sample.float(), return_dict=False)

        def default() -> Tensor:
            with schedule.whole(visited):
                following, *extra[:] = original(*bound.args, **bound.kwargs)
            return following

        index = schedule.indices[visited]
        call = StepCall(
            index, arguments["model_output"], arguments["timestep"], arguments["sample"], loop, schedule.levels, default
        )
        following = default() if self.plan.on_step is None else self.plan.on_step(call)
        self.visited += 1
        schedule.set_step(self.visited)
        return self._answer(following.to(sample.dtype), extra, as_tuple)

    def _other_step(self, result: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        following, *rest = result
        return (self.loop.put(1, following, self._given()), *rest)

    def _states(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        loop = self.loop.joined if self.loop.complete else sample
        if sample is loop or sample.untyped_storage().data_ptr() != loop.untyped_storage().data_ptr():
            return sample, loop
        return sample.clone(), loop.clone()  # Kandinsky 5 writes the next state into this one

    def _answer(self, following: Tensor, extra: list[Tensor], as_tuple: bool) -> Any:
        if not self.has_callback:
            following = self.loop.put(0, following, self._given())
        return (following, *(extra or [following])) if as_tuple else SchedulerOutput(prev_sample=following)

    def after_step(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The pipeline's `callback_on_step_end`: notes the loop state, or puts the given one in its place."""
        given = self._given()
        state = self.loop.put(0, tensors["latents"], given)
        return {} if given is None else {"latents": state, "denoised": state}
