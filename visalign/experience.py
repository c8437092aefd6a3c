"""Make the experience that a method needs: roll out, score, turn rewards into advantages.

What comes out is a list of micro-batches in the order of the layout; training visits the same micro-batches, so that
the denoiser sees the same shapes in rollout and in replay and the on-policy ratio is exactly 1.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from visalign import advantages, aggregation, distributed, kernels, monitor
from visalign.config import RunConfig
from visalign.layout import Layout
from visalign.methods.base import Method, TrajectoryMethod
from visalign.policy import Policy
from visalign.rollout import Recorder, stochastic_kernel
from visalign.scoring import RewardBank
from visalign.types import Conditioning, Levels, Media, RunError, Scores, Trajectory

if TYPE_CHECKING:
    from visalign.pipelines.pipeline import Pipeline

THUMB = 16


@dataclass(frozen=True)
class Actors:
    """All that acts in a run: who samples, who learns, who judges."""

    config: RunConfig
    pipeline: Pipeline
    policy: Policy
    method: Method
    bank: RewardBank


@dataclass(frozen=True)
class Batch:
    """One micro-batch of experience.

    Attributes:
        rows: global row numbers.
        conditioning: what the denoiser was told.
        trajectory: final state and the kept steps.
        advantages: (B,).
        groups: (B,) group ids.
        seeds: one a row, for the noise of the forward families.
    """

    rows: tuple[int, ...]
    conditioning: Conditioning
    trajectory: Trajectory
    advantages: Tensor
    groups: Tensor
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Experience:
    """The experience of one iteration on this process, and what the log says of it."""

    batches: tuple[Batch, ...]
    metrics: Mapping[str, float]


def conditioning_of(config: RunConfig, layout: Layout, rows: tuple[int, ...]) -> Conditioning:
    """The pipeline's arguments for rows of a layout."""
    return Conditioning(layout.row_prompts(rows), config.rollout.guidance_scale, config.model.call)


def check_recipe(config: RunConfig, method: Method, pipeline: Pipeline) -> None:
    """Refuse a recipe that could not learn, before anything is spent.

    Raises:
        InputError: a deterministic kernel for a trajectory method, a scheduler that cannot be replayed, or an
            aggregation that does not exist or lacks an option.
    """
    aggregation.aggregation(config.advantage.aggregate, config.advantage.aggregate_options)
    if isinstance(method, TrajectoryMethod):
        pipeline.require_replayable()
        stochastic_kernel(config.rollout)


def recorder(actors: Actors, iteration: int, seeds: list[int]) -> Recorder:
    """The step rule of an iteration's rollout."""
    config, method = actors.config, actors.method
    if not isinstance(method, TrajectoryMethod):
        return Recorder(config.rollout, (), (), seeds)
    window, total = config.rollout.window, config.rollout.num_steps
    stochastic = window.steps(total, iteration, config.seed)
    trained = window.trained(stochastic, iteration, config.seed)
    return Recorder(
        config.rollout, stochastic, trained, seeds,
        keep_mean=method.keep_mean, storage=actors.pipeline.dtype, reduction=method.reduction, temper=method.temper,
    )  # fmt: skip


def roll_out(actors: Actors, layout: Layout, rows: tuple[int, ...], iteration: int) -> tuple[Batch, Media]:
    """Sample one micro-batch under the behaviour policy; advantages are still zero."""
    config = actors.config
    conditioning = conditioning_of(config, layout, rows)
    initial = layout.seeds(rows, config.seed, f"initial/{iteration}", per_group=config.rollout.noise == "per_group")
    own = layout.seeds(rows, config.seed, f"steps/{iteration}")
    rule = recorder(actors, iteration, own)
    with torch.no_grad(), actors.policy.using(config.rollout.policy):
        run = actors.pipeline.rollout(conditioning, initial, config.rollout.num_steps, rule)
    assert run.media is not None
    trajectory = Trajectory(run.final, tuple(rule.steps), run.levels)
    groups = layout.groups[list(rows)]
    return Batch(rows, conditioning, trajectory, torch.zeros(len(rows)), groups, tuple(own)), run.media


def collect(actors: Actors, layout: Layout, iteration: int) -> Experience:
    """Roll out and score every micro-batch of this process, then compute advantages over all processes."""
    batches, scores, thumbs, pixels = [], [], [], []
    clock: dict[str, float] = {"time/rollout": 0.0, "time/reward": 0.0}
    for rows in layout.micro_batches():
        start = time.perf_counter()
        batch, media = roll_out(actors, layout, rows, iteration)
        middle = time.perf_counter()
        scores.append(actors.bank.score(media, batch.conditioning.prompts))
        clock["time/rollout"] += middle - start
        clock["time/reward"] += time.perf_counter() - middle
        thumbs.append(adaptive_avg_pool2d(media.images, THUMB).flatten(1))
        pixels.append(monitor.pixel_statistics(media))
        batches.append(batch)
    rows_made = layout.own_rows()
    judged = gather_scores(scores, rows_made, layout.total)
    values = row_advantages(actors, judged, layout)
    batches = [replace(b, advantages=values[list(b.rows)]) for b in batches]
    small = distributed.gather_rows(torch.cat(thumbs), rows_made, layout.total).unflatten(1, (3, THUMB, THUMB))
    statistics = {f"pixels/{k}": torch.cat([p[k] for p in pixels]) for k in pixels[0]}
    metrics = clock | score_metrics(judged, layout.groups) | _means(statistics, rows_made, layout.total)
    metrics["diversity"] = monitor.group_diversity(Media.of_images(small), layout.groups)
    return Experience(tuple(batches), metrics)


def gather_scores(parts: list[Scores], rows: list[int], total: int) -> Scores:
    """The scores of all processes' rows, in global row order."""

    def gather(values: list[Tensor]) -> Tensor:
        return distributed.gather_rows(torch.cat(values).cpu(), rows, total)

    components = {name: gather([p.components[name] for p in parts]) for name in parts[0].components}
    valid = gather([p.valid.float() for p in parts]) > 0.5
    return Scores(gather([p.values for p in parts]), components, valid)


def row_advantages(actors: Actors, scores: Scores, layout: Layout) -> Tensor:
    """Advantages of all rows, (total,) float32.

    Raises:
        RunError: no row was judged.
    """
    config = actors.config.advantage
    if not bool(scores.valid.any()):
        raise RunError("no sample of this iteration could be judged; see the reward's own messages")
    combine = aggregation.aggregation(config.aggregate, config.aggregate_options)
    components = {name: scores.components[name] for name in actors.bank.names}
    rewards = combine(components, actors.bank.weights, layout.groups, scores.valid)
    values = advantages.advantages(
        rewards, layout.groups, scores.valid, scale=config.scale, epsilon=config.epsilon, clip=config.clip
    )
    return values if config.keep is None else advantages.keep_extremes(values, rewards, layout.groups, config.keep)


def score_metrics(scores: Scores, groups: Tensor) -> dict[str, float]:
    """What the log says of an iteration's scores."""
    rewards, valid = scores.values, scores.valid
    spread = advantages.group_std(rewards, groups, valid)
    metrics = {f"reward/{name}": float(v[valid].mean()) for name, v in scores.components.items()}
    return metrics | {
        "reward": float(rewards[valid].mean()),
        "reward_std": float(spread.mean()),
        "zero_std_ratio": advantages.zero_std_ratio(rewards, groups, valid),
        "valid": float(valid.float().mean()),
    }


def _means(values: Mapping[str, Tensor], rows: list[int], total: int) -> dict[str, float]:
    return {k: float(distributed.gather_rows(v.cpu().float(), rows, total).mean()) for k, v in values.items()}


def step_weights(config: RunConfig, method: TrajectoryMethod, levels: Levels) -> dict[int, float]:
    """Weights of the steps that may be trained in any iteration, mean 1."""
    window = config.rollout.window
    high = len(levels) - 1 if window.high is None else window.high
    kernel = stochastic_kernel(config.rollout)
    raw = {}
    for index in range(window.low, high):
        std = kernels.coefficients(kernel, levels, index, config.rollout.eta, config.rollout.max_std)[2]
        raw[index] = kernels.step_weight(method.step_weight, levels, index, std)
    mean = sum(raw.values()) / len(raw)
    return {index: value / mean for index, value in raw.items()}


def as_row(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as plain floats, for a JSON line."""
    return {k: float(v) for k, v in metrics.items()}
