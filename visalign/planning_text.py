"""A plan in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from visalign import kernels
from visalign.charts import number
from visalign.report import duration

if TYPE_CHECKING:
    from visalign.planning import Plan


def lines(plan: Plan) -> dict[str, str]:
    """Name → text, in the order of a run."""
    config = plan.config
    method: Any = config.method
    weights = ", ".join(f"{name} × {number(entry.weight)}" for name, entry in config.rewards.items())
    held_out = ", ".join(config.held_out_rewards) or "none: add held_out_rewards to notice reward hacking"
    return {
        "method": f"{method.name}, learns from {plan.family}",
        "rewards": f"{weights}; held out: {held_out}",
        "prompts": f"{plan.prompts} to train, {plan.held_out} held out",
        "iteration": _iteration(plan),
        "run": f"{config.train.iterations} iterations, {plan.updates} updates" + _limit(plan),
        **_steps(plan),
        **_clip(plan),
        **_sizes(plan),
        **_memory(plan.memory, plan),
        **_calls(plan),
        **_time(plan),
        "output": config.output,
        **({"not known": "; ".join(plan.notes)} if plan.notes else {}),
    }


def _iteration(plan: Plan) -> str:
    layout, micro = plan.layout, [len(m) for update in plan.layout.updates for m in update]
    sizes = "+".join(map(str, layout.update_rows))
    shared = f" on each of {plan.world} processes" if plan.world > 1 else ""
    return (
        f"{len(layout.prompts)} groups × {layout.group_size} = {layout.total} rows; {len(layout.updates)} updates of "
        f"{sizes} rows; {len(micro)} micro-batches of up to {max(micro)}{shared}"
    )


def _limit(plan: Plan) -> str:
    limit = plan.config.train.max_minutes
    return f", at most {number(limit)} minutes" if limit is not None else ""


def _steps(plan: Plan) -> dict[str, str]:
    rollout = plan.config.rollout
    text = f"{rollout.num_steps} steps, guidance {number(rollout.guidance_scale)}, {plan.trained} trained a row"
    noise = f"{rollout.kernel} (eta {number(rollout.eta)}) at steps {', '.join(map(str, plan.stochastic))}"
    result = {"denoising": text} | ({"stochastic": f"{noise} of the first iteration"} if plan.stochastic else {})
    if plan.measured is None:
        return result
    return result | {"σ grid": " ".join(number(v) for v in kernels.grid(plan.measured.levels))}


def _clip(plan: Plan) -> dict[str, str]:
    if plan.clip_nats is None:
        return {}
    low, high = plan.clip_nats
    method: Any = plan.config.method
    size = number(low) if number(low) == number(high) else f"{number(low)} to {number(high)}"
    return {"clip": f"{number(method.clip)} on the {method.reduction} log-prob is {size} nats"}


def _sizes(plan: Plan) -> dict[str, str]:
    if plan.sizes is None:
        return {}
    share = f"{plan.sizes.lora:,} of {plan.sizes.total:,} parameters"
    parts = ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in plan.sizes.components.items())
    unsized = f"; not sized: {', '.join(plan.sizes.missing)}" if plan.sizes.missing else ""
    return {"trained": f"{share} (LoRA rank {plan.config.lora.rank})", "model": parts + unsized}


def _memory(memory: Mapping[str, float], plan: Plan) -> dict[str, str]:
    if not memory:
        return {}
    parts = " + ".join(f"{name} {amount(value)}" for name, value in memory.items() if value)
    peak = plan.measured.peak_gb if plan.measured is not None else None
    seen = f"; measured peak {amount(peak)}" if peak is not None else "; activations come on top"
    return {"memory": f"{amount(sum(memory.values()))} = {parts}{seen}"}


def amount(gb: float) -> str:
    """Memory for people.

    Example:
        >>> amount(23.4), amount(0.0123)
        ('23.4 GB', '12.3 MB')
    """
    return f"{number(gb)} GB" if gb >= 1 else f"{number(1000 * gb)} MB"


def _calls(plan: Plan) -> dict[str, str]:
    total = plan.config.train.iterations
    return {
        "model calls": f"{plan.model_calls:,} an iteration, {plan.model_calls * total:,} in all",
        "reward calls": f"{plan.reward_calls:,} an iteration, {plan.reward_calls * total:,} in all",
    }


def _time(plan: Plan) -> dict[str, str]:
    if plan.seconds is None:
        return {}
    whole = duration(plan.seconds * plan.config.train.iterations)
    return {"time": f"{number(plan.seconds)} s an iteration, {whole} in all, without evaluations"}
