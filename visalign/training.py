"""The one loop: experience → loss → update → evaluate → checkpoint → log.

It knows five families of experience and no method. Every random draw is a function of the seed and of counters that
stand in the checkpoint, so a run that is killed and resumed equals one that is not.
"""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from visalign import distributed, evaluation, learning, lora, planning
from visalign.config import RunConfig, load_config
from visalign.evaluation import Evaluation
from visalign.experience import Experience, as_row, collect
from visalign.layout import Layout, plan_rows, select
from visalign.methods.base import DifferentiableMethod, MediaMethod, PairMethod, SampleMethod, TrajectoryMethod
from visalign.monitor import Alarm
from visalign.preparing import Counters, Progress, Run, open_pipeline, open_run, save
from visalign.runs import summarise
from visalign.types import Conditioning, Levels, RunError


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
        run: the run's folder.
        lora_path: what plain diffusers loads.
        report: the page.
        evaluations: iteration → held-out evaluation, the base at 0; those of this process's lifetime.
        summary: what summary.json holds.
    """

    run: Path
    lora_path: Path
    report: Path
    evaluations: dict[int, Evaluation]
    summary: dict[str, Any]


def train(
    config: RunConfig | str | Path | dict[str, Any],
    *,
    resume: Path | Literal["latest"] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Align a model.

    Args:
        config: a run's config, its values, or the path of its YAML file.
        resume: a checkpoint's folder, or `latest` of `config.output`.
        progress: called with every row of metrics.jsonl.

    Returns:
        The result, with the path of the LoRA.

    Raises:
        InputError: the config or what it names is wrong; nothing was spent.
        RunError: the run failed; the last checkpoint stands.
    """
    config = config if isinstance(config, RunConfig) else load_config(config)
    distributed.start()
    run = open_run(config, resume, progress)
    stopped = loop(run)
    return finish(run, stopped)


def loop(run: Run) -> Alarm | None:
    """Iterate until the end, the time limit, or an alarm that stops; returns that alarm."""
    config, counters = run.config, run.counters
    began = time.perf_counter() - counters.seconds
    while counters.iteration < config.train.iterations:
        if counters.iteration == 0:
            evaluate(run, everything=True)
        row = iterate(run)
        counters.iteration += 1
        counters.seconds = time.perf_counter() - began
        alarms = run.folder.log(
            {"kind": "train", "iteration": counters.iteration, **row, "model_calls": counters.model_calls,
             "reward_calls": counters.reward_calls, "time/total": counters.seconds}, run.monitor,
        )  # fmt: skip
        last = counters.iteration == config.train.iterations or out_of_time(config, counters)
        if counters.iteration % config.evaluation.every == 0 or last:
            alarms += evaluate(run, everything=last)
        if counters.iteration % config.train.checkpoint_every == 0 or last:
            save(run)
        for alarm in alarms:
            if alarm.name in config.monitor.stop_on:
                return alarm
        if last:
            break
    return None


def out_of_time(config: RunConfig, counters: Counters) -> bool:
    """Whether the time limit has passed."""
    return config.train.max_minutes is not None and counters.seconds > 60 * config.train.max_minutes


def iterate(run: Run) -> dict[str, float]:
    """One round of experience and its updates; returns what the log says."""
    layout = lay_out(run)
    if run.given is not None:
        experience = run.given.collect(run.actors, layout)
    elif isinstance(run.actors.method, DifferentiableMethod):
        experience = Experience((), {})
    else:
        experience = collect(run.actors, layout, run.counters.iteration)
        if run.counters.iteration == 0:
            check_replay(run, experience)
    start = time.perf_counter()
    learnt = update(run, layout, experience)
    follow(run)
    count_calls(run, layout)
    metrics = dict(experience.metrics) | learnt | {"time/train": time.perf_counter() - start}
    seconds = sum(v for k, v in metrics.items() if k.startswith("time/"))
    metrics |= {"images_per_s": layout.total / seconds, "peak_memory_gb": peak_memory_gb()}
    return as_row(metrics) | {"update": run.optimizer.updates}


def count_calls(run: Run, layout: Layout) -> None:
    """Add an iteration's denoiser evaluations and scored rows, over all processes."""
    config, method = run.config, run.actors.method
    trained = planning.trained_steps(config, method)[1]
    run.counters.model_calls += planning.model_calls(config, method, layout.total, trained)
    run.counters.reward_calls += 0 if run.given is not None else layout.total


def peak_memory_gb() -> float:
    """The most memory held so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def lay_out(run: Run) -> Layout:
    """The rows of the coming iteration."""
    config, iteration = run.config, run.counters.iteration
    source = run.prompts if run.given is None else run.given.prompts
    chosen = source.take(select(len(source), config.train.prompts_per_iteration, iteration, config.seed))
    size = {PairMethod: 2, MediaMethod: 1}
    group = next((n for kind, n in size.items() if isinstance(run.actors.method, kind)), config.train.group_size)
    return plan_rows(
        chosen, group, updates=config.train.updates, micro_batch=config.train.micro_batch,
        whole_groups=run.actors.method.whole_groups, seed=config.seed, iteration=iteration,
        rank=distributed.rank(), world=distributed.world(),
    )  # fmt: skip


def check_replay(run: Run, experience: Experience) -> None:
    """Before the first update, rollout and replay must give the same log-probabilities.

    Raises:
        RunError: they do not; training would start off-policy without anyone knowing.
    """
    method = run.actors.method
    if not isinstance(method, TrajectoryMethod):
        return
    deviation = learning.replay_deviation(run.actors, method, experience.batches[0])
    run.folder.log({"kind": "check", "iteration": 0, "replay_deviation": deviation}, run.monitor)
    limit = 0.1 * run.config.method.clip  # type: ignore[attr-defined]
    if deviation > limit:
        raise RunError(
            f"rollout and replay disagree by {deviation:.2e} in log-probability, more than a tenth of the clip "
            f"({limit:.2e}); use model.dtype=float32 or the default attention backend"
        )


def update(run: Run, layout: Layout, experience: Experience) -> dict[str, float]:
    """All optimiser steps of an iteration."""
    metrics: learning.Metrics = defaultdict(list)
    batches = iter(experience.batches)
    steps: list[dict[str, float]] = []
    for number, micro_batches in enumerate(layout.updates):
        for micro in micro_batches:
            gradients(run, layout, micro, next(batches, None), number, metrics)
        distributed.sum_gradients(run.actors.policy.parameters.values())
        steps.append(run.optimizer.step())
        run.counters.learnt |= steps[-1]["grad_norm"] > 0
        if run.config.ema.decay and run.optimizer.updates % run.config.ema.every == 0:
            run.actors.policy.average("ema", run.config.ema.decay)
    return learning.averages(metrics) | {k: sum(s[k] for s in steps) / len(steps) for k in steps[0]}


def gradients(
    run: Run, layout: Layout, micro: tuple[int, ...], batch: Any, number: int, metrics: learning.Metrics
) -> None:
    """Add one micro-batch's gradients, by the method's family."""
    actors, method, rows = run.actors, run.actors.method, layout.update_rows[number]
    if isinstance(method, TrajectoryMethod):
        learning.reverse_gradients(actors, method, batch, rows, metrics)
    elif isinstance(method, DifferentiableMethod):
        learning.reward_gradients(actors, method, layout, micro, run.counters.iteration, rows, metrics)
    elif isinstance(method, SampleMethod | PairMethod | MediaMethod):
        stream = f"{run.counters.iteration}/{number}/{micro[0]}"
        learning.forward_gradients(actors, method, batch, grid(run, method, batch), stream, rows, metrics)
    else:
        raise TypeError(f"{type(method).__name__} belongs to none of the families of methods.base")


def grid(run: Run, method: Any, batch: Any) -> Levels:
    """The noise levels that a forward method corrupts at: the rollout's own, or a fine grid for given media."""
    if isinstance(method, PairMethod | MediaMethod):
        return run.actors.pipeline.levels(batch.conditioning, method.num_levels)
    return batch.trajectory.levels


def follow(run: Run) -> None:
    """Let the old snapshot follow the current weights."""
    policy = run.actors.policy
    if "old" in policy.snapshots:
        policy.average("old", run.actors.method.old_decay(run.counters.iteration))


def shipped(run: Run) -> str:
    """The policy that is evaluated and saved."""
    return "ema" if "ema" in run.actors.policy.snapshots else "current"


def evaluate(run: Run, *, everything: bool) -> list[Alarm]:
    """Held-out prompts and seeds, always the same, all processes alike; the main one writes."""
    config, counters = run.config.evaluation, run.counters
    usual = min(config.prompts or len(run.held_out), len(run.held_out))
    count = len(run.held_out) if everything else usual
    prompts = run.held_out.take(
        evaluation.alternating(run.held_out)[:count] if count < len(run.held_out) else range(count)
    )
    with torch.no_grad(), run.actors.policy.using(shipped(run)):
        result = evaluation.evaluate(
            run.actors.pipeline, prompts, run.eval_bank, seed=config.seed,
            num_steps=config.num_steps or run.config.rollout.num_steps, batch=config.batch,
            guidance_scale=run.config.rollout.guidance_scale, call=run.config.model.call, keep_images=config.images,
        )  # fmt: skip
    run.evaluations[counters.iteration] = result
    if counters.iteration == 0:
        counters.base_scores = {k: v.tolist() for k, v in result.scores.items()}
    alarms = run.folder.log({"kind": "eval", "iteration": counters.iteration, **result.row()}, run.monitor)
    run.folder.write_samples(counters.iteration, result)
    score = result.headline(run.eval_bank)
    if score > counters.best and count == usual:  # other prompts would be another measurement
        counters.best, counters.best_iteration = score, counters.iteration
        if distributed.is_main() and counters.iteration:
            with run.actors.policy.using(shipped(run)):
                lora.save(run.actors.policy, run.folder.path / "checkpoints" / "best")
    return alarms


def finish(run: Run, stopped: Alarm | None) -> Result:
    """Save the adapter, prove that it loads, write report, card and summary.

    Raises:
        RunError: no update changed anything, or the saved adapter does not give the trained result.
    """
    if not run.counters.learnt:
        raise RunError(
            "no update had a gradient: every group's rewards were equal. Raise train.group_size, or use a graded reward"
        )
    out, policy = run.folder.path / "lora", run.actors.policy
    if stopped is not None and run.counters.best_iteration:
        policy.load_folded(lora.read(run.folder.path / "checkpoints" / "best"))
        policy.snapshots.pop("ema", None)
        evaluate(run, everything=True)
    with policy.using(shipped(run)):
        if distributed.is_main():
            lora.save(policy, out)
        distributed.wait()
        check_saved(run, out)
    summary = summarise(
        run.config, vars(run.counters), run.evaluations[run.counters.iteration], len(run.prompts), stopped
    )
    report = run.folder.finish(summary)
    return Result(run.folder.path, out, report, run.evaluations, summary)


def check_saved(run: Run, folder: Path) -> None:
    """Load the LoRA into a fresh pipeline and compare."""
    config = run.config
    conditioning = Conditioning(run.held_out.take([0]), config.rollout.guidance_scale, config.model.call)
    start = run.actors.pipeline.rollout(conditioning, [config.seed], config.rollout.num_steps, decode=False).initial
    error = lora.verify(
        run.actors.pipeline, run.actors.policy, folder, lambda: open_pipeline(config), conditioning, start,
        config.rollout.num_steps,
    )  # fmt: skip
    run.folder.log({"kind": "check", "iteration": run.counters.iteration, "lora_error": error}, run.monitor)
