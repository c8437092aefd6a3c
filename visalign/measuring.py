"""Look at a loaded model: its noise levels and latent size, and when asked for, its times and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from visalign.config import RunConfig
from visalign.types import Conditioning, Levels, Media, Prompts

if TYPE_CHECKING:
    from visalign.pipelines.pipeline import Pipeline


@dataclass(frozen=True)
class Times:
    """Seconds a row.

    Attributes:
        step: one denoising step.
        decode: decoding.
        reward: scoring.
        train: one trained step, forward and backward.
    """

    step: float
    decode: float
    reward: float
    train: float


@dataclass(frozen=True)
class Measured:
    """What was seen of a model.

    Attributes:
        levels: noise levels of a rollout.
        elements: latent numbers of one row.
        times: seconds a row; None where nothing was timed.
        peak_gb: the most GPU memory held while timing; None on a CPU or where nothing was timed.
    """

    levels: Levels
    elements: int
    times: Times | None = None
    peak_gb: float | None = None


def look(config: RunConfig, prompts: Prompts, *, timed: bool) -> Measured:
    """Load a config's model and look at it with one micro-batch.

    Args:
        config: of a run.
        prompts: training prompts.
        timed: measure times and memory, with the adapter and gradients.
    """
    from visalign.preparing import open_pipeline

    pipeline = open_pipeline(config)
    one = _conditioning(config, prompts, 1)
    levels = pipeline.levels(one, config.rollout.num_steps)
    initial = pipeline.rollout(one, [config.seed], 1, decode=False).initial
    if not timed:
        return Measured(levels, initial.numel())
    times = measure_times(config, pipeline, prompts)
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    return Measured(levels, initial.numel(), times, peak)


def _conditioning(config: RunConfig, prompts: Prompts, rows: int) -> Conditioning:
    return Conditioning(
        prompts.take([r % len(prompts) for r in range(rows)]), config.rollout.guidance_scale, config.model.call
    )


def measure_times(config: RunConfig, pipeline: Pipeline, prompts: Prompts) -> Times:
    """Seconds a row, from one micro-batch; differences of two runs, so that what is shared drops out."""
    from visalign.policy import Policy

    rows = config.train.micro_batch
    conditioning, seeds = _conditioning(config, prompts, rows), list(range(rows))
    policy = Policy(pipeline.denoisers, config.lora, pipeline.family.lora_targets, config.seed)
    seen: list[Media] = []

    def generate(steps: int, decode: bool) -> float:
        def run() -> None:
            media = pipeline.rollout(conditioning, seeds, steps, decode=decode).media
            seen.extend([] if media is None else [media])

        return clock(run)

    generate(1, True)  # encodes the prompts and warms up
    short, long, decoded = generate(1, False), generate(3, False), generate(1, True)
    step, start = (long - short) / 2, pipeline.rollout(conditioning, seeds, 1, decode=False).initial
    trained = clock(lambda: _train_once(pipeline, conditioning, start, config.rollout.num_steps))
    for parameter in policy.parameters.values():
        parameter.grad = None
    per_row = (step, decoded - short, _reward_time(config, seen[0], conditioning.prompts), trained)
    return Times(*(max(0.0, value) / rows for value in per_row))


def _train_once(pipeline: Pipeline, conditioning: Conditioning, start: torch.Tensor, num_steps: int) -> None:
    pipeline.replay(
        conditioning, {0: start}, num_steps, lambda call: call.output.float().square().mean().backward(), grad=True
    )


def _reward_time(config: RunConfig, media: Media, prompts: Prompts) -> float:
    from visalign.scoring import RewardBank

    bank = RewardBank(config.rewards)
    bank.score(media, prompts)  # loads what it needs
    return clock(lambda: bank.score(media, prompts))


def clock(run: Callable[[], object]) -> float:
    """Seconds that a call takes, with the GPU's work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
