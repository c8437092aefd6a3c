"""From experience to gradients: one function a family of methods, all through the pipeline's own steps.

Every function visits the trained steps of a micro-batch in one pipeline call and calls backward inside each step, so
that the memory of one step is held at a time. Gradients add up over micro-batches; the optimiser is the loop's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from visalign import kernels, process
from visalign.credit import CREDITS
from visalign.experience import Actors, Batch, conditioning_of, step_weights
from visalign.layout import Layout
from visalign.methods.base import (
    DifferentiableMethod,
    ForwardView,
    Loss,
    MediaMethod,
    PairMethod,
    ReverseView,
    SampleMethod,
    TrajectoryMethod,
)
from visalign.rollout import draw, row_seed, stochastic_kernel
from visalign.types import Levels

if TYPE_CHECKING:
    from visalign.pipelines.tap import StepCall

Forward = SampleMethod | PairMethod | MediaMethod
Metrics = defaultdict[str, list[Tensor]]


def note(metrics: Metrics, loss: Loss) -> None:
    """Keep what a loss reports."""
    metrics["loss"].append(loss.rows.detach())
    for name, value in loss.metrics.items():
        metrics[name].append(value.detach())


def averages(metrics: Metrics) -> dict[str, float]:
    """The mean of everything that was noted; nothing for what has no numbers."""
    joined = {k: torch.cat([v.flatten().float() for v in values]) for k, values in metrics.items()}
    return {k: float(v.mean()) for k, v in joined.items() if len(v)}


def other_outputs(
    actors: Actors, batch: Batch, states: Mapping[int, Tensor], num_steps: int
) -> dict[str, dict[int, Tensor]]:
    """Outputs of the policies that the method needs, at the same states: policy → step → (B, *S)."""
    outputs: dict[str, dict[int, Tensor]] = {}
    for name in sorted(actors.method.needs):
        kept = outputs[name] = {}

        def keep(call: StepCall, kept: dict[int, Tensor] = kept) -> None:
            kept[call.index] = call.output

        with torch.no_grad(), actors.policy.using(name):
            actors.pipeline.replay(batch.conditioning, states, num_steps, keep, grad=False)
    return outputs


def reverse_gradients(actors: Actors, method: TrajectoryMethod, batch: Batch, rows: int, metrics: Metrics) -> None:
    """Gradients of a trajectory method for one micro-batch.

    Args:
        actors: pipeline, policy, method.
        method: the method.
        batch: experience with its kept steps.
        rows: rows of the whole update over all processes; the loss is their mean.
        metrics: what the loss reports is noted here.
    """
    config = actors.config.rollout
    steps = {step.index: step for step in batch.trajectory.steps}
    states = {index: step.loop for index, step in steps.items()}
    others = other_outputs(actors, batch, states, config.num_steps)
    weights = step_weights(actors.config, method, batch.trajectory.levels)
    kernel = stochastic_kernel(config)
    shares = CREDITS[actors.config.advantage.credit](batch.advantages, len(steps)).to(actors.pipeline.device)  # (B, K)
    column = {index: k for k, index in enumerate(steps)}

    def transition(call: StepCall, output: Tensor) -> kernels.Transition:
        return kernels.transition(
            kernel, call.levels, call.index, call.sample, output, eta=config.eta, max_std=config.max_std
        )

    def on_step(call: StepCall) -> None:
        outputs = {name: kept[call.index] for name, kept in others.items()}
        sigma = call.levels.sigma
        view = ReverseView(
            step=steps[call.index],
            transition=transition(call, call.output),
            others={name: transition(call, output) for name, output in outputs.items()},
            output=call.output,
            other_outputs=outputs,
            advantages=shares[:, column[call.index]],
            groups=batch.groups,
            weight=weights[call.index],
            dt=float(sigma[call.index] - sigma[call.index + 1]),
        )
        loss = method.loss(view)
        (loss.rows.sum() / (rows * len(steps))).backward()
        note(metrics, loss)

    actors.pipeline.replay(batch.conditioning, states, config.num_steps, on_step, grad=True)


def replay_deviation(actors: Actors, method: TrajectoryMethod, batch: Batch) -> float:
    """Largest |log p − log p_old| over a micro-batch under unchanged weights; 0 when rollout and replay agree."""
    config = actors.config.rollout
    steps, worst = {s.index: s for s in batch.trajectory.steps}, [0.0]
    kernel = stochastic_kernel(config)

    def on_step(call: StepCall) -> None:
        step = steps[call.index]
        again = kernels.transition(
            kernel, call.levels, call.index, call.sample, call.output, eta=config.eta, max_std=config.max_std
        )
        assert step.x_next is not None
        assert step.log_prob is not None
        log_prob = again.log_prob(step.x_next, reduction=method.reduction, temper=method.temper)
        worst.append(float((log_prob - step.log_prob).abs().max()))

    with torch.no_grad():
        states = {i: s.loop for i, s in steps.items()}
        actors.pipeline.replay(batch.conditioning, states, config.num_steps, on_step, grad=False)
    return max(worst)


def forward_gradients(
    actors: Actors, method: Forward, batch: Batch, levels: Levels, stream: str, rows: int, metrics: Metrics
) -> None:
    """Gradients of a method that corrupts clean samples again, for one micro-batch.

    Args:
        actors: pipeline, policy, method.
        method: the method.
        batch: experience whose trajectory's x0 are the clean samples.
        levels: the grid of noise levels to corrupt at.
        stream: names the draw of levels and noise: a function of the iteration, never of the process.
        rows: rows of the whole update over all processes.
        metrics: what the loss reports is noted here.
    """
    generator = torch.Generator().manual_seed(row_seed(actors.config.seed, f"times/{stream}", 0, 0))
    times = list(method.times(levels, generator))
    x0, num_steps = batch.trajectory.x0, len(levels)
    noises = {k: draw(batch.seeds, 10_000 + k, x0.shape[1:]).to(x0.device) for k in times}
    states = {k: process.add_noise(x0, noises[k], levels.a[k].float(), levels.s[k].float()) for k in times}
    others = other_outputs(actors, batch, states, num_steps)

    def on_step(call: StepCall) -> None:
        view = ForwardView(
            levels=call.levels,
            index=call.index,
            x0=x0,
            eps=noises[call.index],
            x=states[call.index],
            output=call.output,
            others={name: kept[call.index] for name, kept in others.items()},
            advantages=batch.advantages.to(x0.device),
            groups=batch.groups,
        )
        loss = method.loss(view)
        (loss.rows.sum() / (rows * len(times))).backward()
        note(metrics, loss)

    actors.pipeline.replay(batch.conditioning, states, num_steps, on_step, grad=True)


def reward_gradients(
    actors: Actors, method: DifferentiableMethod, layout: Layout, micro: tuple[int, ...], iteration: int, rows: int,
    metrics: Metrics,
) -> None:  # fmt: skip
    """Gradients through the sampler, the decoder and the reward, for one micro-batch."""
    config = actors.config
    conditioning = conditioning_of(config, layout, micro)
    seeds = layout.seeds(micro, config.seed, f"initial/{iteration}")
    generator = torch.Generator().manual_seed(row_seed(config.seed, f"times/{iteration}", 0, 0))
    start = method.grad_from(config.rollout.num_steps, generator)
    run = actors.pipeline.rollout(conditioning, seeds, config.rollout.num_steps, grad_from=start)
    assert run.media is not None
    scores = actors.bank.score_with_grad(run.media, conditioning.prompts)
    loss = method.loss(scores)
    (loss.rows.sum() / rows).backward()
    note(metrics, loss)
    metrics["reward"].append(scores.values.detach()[scores.valid])
    for name, value in scores.components.items():
        metrics[f"reward/{name}"].append(value.detach()[~value.isnan()])  # NaN where this part could not judge
