"""Everything that follows from a config, before anything is spent: geometry, levels, sizes, memory, calls, time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from visalign import kernels, registry
from visalign.config import RunConfig
from visalign.methods.base import DifferentiableMethod, MediaMethod, Method, PairMethod, SampleMethod, TrajectoryMethod
from visalign.prompts import read_prompts
from visalign.sizing import BYTES, Sizes, measure_sizes, model_folder
from visalign.types import Levels, Prompts

if TYPE_CHECKING:
    from rich.table import Table

    from visalign.layout import Layout
    from visalign.measuring import Measured

SMALL = 100_000_000
"""Parameters up to which a model is loaded to read its noise levels; larger ones only when asked to measure."""
FAMILIES: dict[type[Method], str] = {
    TrajectoryMethod: "stored stochastic steps",
    SampleMethod: "samples with advantages",
    DifferentiableMethod: "gradients through sampler and reward",
    PairMethod: "given pairs",
    MediaMethod: "given media",
}


@dataclass(frozen=True)
class Plan:
    """What a run will do and cost.

    Attributes:
        config: the run's.
        layout: rows of the first iteration on this process, dealt to updates and micro-batches.
        world: processes.
        family: how the method learns.
        stochastic: stochastic steps of the first iteration's rollouts.
        trained: steps that each row is trained at.
        model_calls: denoiser evaluations of an iteration, counted by rows.
        reward_calls: scored rows of an iteration.
        prompts: training prompts; held_out: held-out prompts.
        sizes: parameters, None where the model's configs are not on this machine.
        measured: what was seen of the model; None where it was not loaded.
        memory: name → GB on one device, without activations; empty where the sizes are not known.
        notes: what could not be told, and why.
    """

    config: RunConfig
    layout: Layout
    world: int
    family: str
    stochastic: tuple[int, ...]
    trained: int
    model_calls: int
    reward_calls: int
    prompts: int
    held_out: int
    sizes: Sizes | None
    measured: Measured | None
    memory: Mapping[str, float]
    notes: tuple[str, ...]

    @property
    def updates(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.train.iterations * self.config.train.updates

    @property
    def clip_nats(self) -> tuple[float, float] | None:
        """The ratio's clip in nats of the true log-ratio, lowest and highest over the stochastic steps."""
        config: Any = self.config.method
        if not self.stochastic or self.measured is None or "clip" not in type(config).model_fields:
            return None
        found = [clip_in_nats(self.config, self.measured.levels, k, self.measured.elements) for k in self.stochastic]
        return min(found), max(found)

    @property
    def seconds(self) -> float | None:
        """Estimated seconds of an iteration; None where nothing was timed."""
        if self.measured is None or self.measured.times is None:
            return None
        times, learnt = self.measured.times, self.layout.total * self.trained
        scoring = self.reward_calls * (times.reward + times.decode)
        return ((self.model_calls - learnt) * times.step + learnt * times.train + scoring) / self.world


def clip_in_nats(config: RunConfig, levels: Levels, step: int, elements: int) -> float:
    """The clip of one step in nats; tempered log-probabilities lack the 1/(2·std²) of the density."""
    method: Any = config.method
    clip = kernels.clip_in_nats(method.clip, elements, method.reduction)
    if not method.temper:
        return clip
    kernel = registry.load("kernels", config.rollout.kernel)
    std = kernels.coefficients(kernel, levels, step, config.rollout.eta, config.rollout.max_std)[2]
    return clip / (2 * std**2)


def plan(config: RunConfig, *, measure: bool = False) -> Plan:
    """Derive everything from a config; nothing is trained and nothing is written.

    Args:
        config: of a run.
        measure: load the model, whatever its size, and measure memory and time with one micro-batch.

    Raises:
        InputError: the config could not learn, or names what does not exist.
    """
    from visalign.preparing import check_groups

    method: Method = registry.load("methods", config.method.name)(config.method)  # type: ignore[attr-defined]
    check_groups(config, method)
    prompts, held_out = _train_prompts(config, method), read_prompts(config.prompts.held_out)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    layout = _layout(config, method, prompts, world)
    stochastic, trained = trained_steps(config, method)
    sizes, measured, notes = _look(config, prompts, measure)
    return Plan(
        config=config,
        layout=layout,
        world=world,
        family=next(text for kind, text in FAMILIES.items() if isinstance(method, kind)),
        stochastic=stochastic,
        trained=trained,
        model_calls=model_calls(config, method, layout.total, trained),
        reward_calls=0 if isinstance(method, PairMethod | MediaMethod) else layout.total,
        prompts=len(prompts),
        held_out=len(held_out),
        sizes=sizes,
        measured=measured,
        memory={} if sizes is None else memory(config, method, sizes),
        notes=notes,
    )


def _train_prompts(config: RunConfig, method: Method) -> Prompts:
    from visalign.given import open_given

    given = open_given(config, method)
    return read_prompts(config.prompts.train) if given is None else given.prompts


def _layout(config: RunConfig, method: Method, prompts: Prompts, world: int) -> Layout:
    from visalign.layout import plan_rows, select

    group = 2 if isinstance(method, PairMethod) else 1 if isinstance(method, MediaMethod) else config.train.group_size
    return plan_rows(
        prompts.take(select(len(prompts), config.train.prompts_per_iteration, 0, config.seed)),
        group,
        updates=config.train.updates,
        micro_batch=config.train.micro_batch,
        whole_groups=method.whole_groups,
        seed=config.seed,
        iteration=0,
        rank=int(os.environ.get("RANK", "0")),
        world=world,
    )


def trained_steps(config: RunConfig, method: Method) -> tuple[tuple[int, ...], int]:
    """The stochastic steps of the first iteration, and how many steps each row is trained at."""
    total = config.rollout.num_steps
    if isinstance(method, TrajectoryMethod):
        steps = config.rollout.window.steps(total, 0, config.seed)
        return steps, len(config.rollout.window.trained(steps, 0, config.seed))
    if isinstance(method, DifferentiableMethod):
        return (), total - method.grad_from(total, torch.Generator().manual_seed(0))
    assert isinstance(method, SampleMethod | PairMethod | MediaMethod)
    count = total if isinstance(method, SampleMethod) else method.num_levels
    grid = torch.linspace(1, 0, count + 1, dtype=torch.float64)  # only its length decides how many are drawn
    return (), len(method.times(Levels(1 - grid, grid, grid[:-1], "flow"), torch.Generator().manual_seed(0)))


def model_calls(config: RunConfig, method: Method, rows: int, trained: int) -> int:
    """Denoiser evaluations of an iteration, counted by rows: sampling, training, and the other policies' passes."""
    sampled = 0 if isinstance(method, PairMethod | MediaMethod) else rows * config.rollout.num_steps
    if isinstance(method, DifferentiableMethod):
        return sampled + rows * trained  # the backward pass computes them again when checkpointed; counted once here
    return sampled + rows * trained * (1 + len(method.needs))


def _look(config: RunConfig, prompts: Prompts, measure: bool) -> tuple[Sizes | None, Measured | None, tuple[str, ...]]:
    from visalign import measuring

    folder = model_folder(config.model.name)
    if folder is None and not measure:
        why = f"{config.model.name} is not on this machine, so it cannot be sized offline; --measure fetches it"
        return None, None, (why,)
    sizes = None if folder is None else measure_sizes(folder, config.lora)
    if measure or (sizes is not None and sizes.total <= SMALL):
        return sizes, measuring.look(config, prompts, timed=measure), ()
    return sizes, None, ("noise levels, clip in nats, activations and time need the loaded model: --measure",)


def memory(config: RunConfig, method: Method, sizes: Sizes) -> dict[str, float]:
    """GB on one device: weights, adapter, gradients, optimiser, snapshots; without activations."""
    plain = BYTES[config.model.dtype]
    packed = BYTES[config.model.quantise] if config.model.quantise else plain
    frozen = {name: count * (packed if name in sizes.denoisers else plain) for name, count in sizes.components.items()}
    copies = {"ema": bool(config.ema.decay), "old": "old" in method.needs or config.rollout.policy == "old"}
    specs = [vars(registry.load("rewards", n.partition("#")[0])).get("spec") for n in config.rewards]
    result = {
        "frozen model": sum(frozen.values()),
        "adapter with gradients": 8.0 * sizes.lora,
        "optimiser": 8.0 * sizes.lora,
        "snapshots": 4.0 * sizes.lora * sum(copies.values()),
        "rewards": sum(1e9 * spec.memory_gb for spec in specs if spec is not None),
    }
    return {name: value / 1e9 for name, value in result.items()}


def table(plan: Plan) -> Table:
    """The plan for a terminal."""
    from rich.table import Table
    from rich.text import Text

    shown = Table("plan", "", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in describe(plan).items():
        shown.add_row(name, Text(value))
    return shown


def describe(plan: Plan) -> dict[str, str]:
    """The plan as lines: name → text."""
    from visalign.planning_text import lines

    return lines(plan)
