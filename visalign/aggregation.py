"""Several rewards → one. Every function has one signature and is aware of rows that could not be judged.

    f(components: name → (B,), weights: name → float, groups (B,) int64, valid (B,) bool) → (B,) float32

Only the components that have a weight count. Groups are integer ids in any order. Invalid rows are not read, enter no
statistic, and get 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from visalign.advantages import group_max, group_mean, group_quantile, group_std, win_rate
from visalign.types import InputError
from visalign.uncertainty import UNCERTAINTY_RULES


def weighted_sum(
    components: Mapping[str, Tensor], weights: Mapping[str, float], groups: Tensor, valid: Tensor
) -> Tensor:
    """Σ w·r of raw rewards; a reward's scale is part of its weight. Carries gradients. `groups` are not read.

    Example:
        >>> parts = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, torch.nan])}
        >>> weighted_sum(parts, {"a": 1.0, "b": 0.5}, torch.tensor([0, 0]), torch.tensor([True, False]))
        tensor([6., 0.])
    """
    total = torch.zeros(len(valid), device=valid.device)
    for name, weight in weights.items():
        total = total + weight * torch.where(valid, components[name], 0.0)
    return total


def group_z(
    components: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    valid: Tensor,
    *,
    epsilon: float = 1e-4,
) -> Tensor:
    """Σ w·(r − mean_g)/(std_g + ε), each reward by its own statistics in the group (GDPO, arXiv 2601.05242).

    The std is the population's; GDPO's batch normalisation afterwards is `advantages` with scale `global`. With
    epsilon 0 it does not change under r → a·r + b, a > 0. A reward that is constant in a group adds exactly 0.

    Example:
        >>> parts = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([300.0, 100.0])}
        >>> group_z(parts, {"a": 1.0, "b": 0.5}, torch.tensor([0, 0]), torch.tensor([True, True]), epsilon=0)
        tensor([-0.5000,  0.5000])
    """
    total = torch.zeros(len(valid), dtype=torch.float64, device=valid.device)
    for name, weight in weights.items():
        centred = components[name].double() - group_mean(components[name], groups, valid)
        std = group_std(components[name], groups, valid)
        total = total + weight * centred / torch.where(std == 0, 1.0, std + epsilon)
    return torch.where(valid, total, 0.0).float()


def log_sigmoid(
    components: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    valid: Tensor,
    *,
    quantile: float = 0.85,
) -> Tensor:
    """Σ w·log σ(r − r_ref): the log-probability that all are good enough (2402.00742, eq. 5); a conjunction.

    It saturates above the reference and pulls at the worst property. The reference is the quantile of the row's own
    group; it does not change under r → r + b.

    Example:
        >>> parts = {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([0.0, 0.0])}
        >>> log_sigmoid(parts, {"a": 1.0, "b": 1.0}, torch.tensor([0, 0]), torch.tensor([True, True])).exp()
        tensor([0.2500, 0.2500])
    """
    total = torch.zeros(len(valid), dtype=torch.float64, device=valid.device)
    for name, weight in weights.items():
        gap = components[name].double() - group_quantile(components[name], groups, valid, quantile)
        total = total + weight * torch.nn.functional.logsigmoid(torch.where(valid, gap, 0.0))
    return torch.where(valid, total, 0.0).float()


def log_tamed(
    components: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    valid: Tensor,
    *,
    threshold: float | None = None,
) -> Tensor:
    """Σ w·r', where a reward that varies more than its peers is replaced by log(1 + r) (PaCo-RL).

    What varies is the std over |mean| of the batch's valid rows, h; the threshold is a number, or the mean of all h.
    Rewards are ≥ 0. `groups` are not read.

    Raises:
        InputError: a valid reward is negative.
    """
    spread = {name: _variation(name, components[name], valid) for name in weights}
    limit = sum(spread.values()) / max(1, len(spread)) if threshold is None else threshold
    tamed = {name: components[name].log1p() if spread[name] > limit else components[name] for name in weights}
    return weighted_sum(tamed, weights, groups, valid)


def _variation(name: str, values: Tensor, valid: Tensor) -> float:
    rows = values.detach()[valid].double()
    if len(rows) == 0:
        return 0.0
    if float(rows.min()) < 0:
        raise InputError(f"log_tamed takes rewards of 0 or more, but {name!r} gave {float(rows.min()):g}; shift it, or "
                         f"choose aggregate: group_z")  # fmt: skip
    return float(rows.std(correction=0) / (rows.mean().abs() + 1e-6))


def pareto(components: Mapping[str, Tensor], weights: Mapping[str, float], groups: Tensor, valid: Tensor) -> Tensor:
    """1 for rows that no other valid row of the group beats in all rewards, else 0 (Parrot, 2401.05675).

    A negative weight means that less is better; sizes of weights do not count. It does not change under any increasing
    map of a reward.

    Example:
        >>> parts = {"a": torch.tensor([1.0, 0.0, 0.5]), "b": torch.tensor([0.0, 1.0, 0.0])}
        >>> pareto(parts, {"a": 1.0, "b": 1.0}, torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.bool))
        tensor([1., 1., 0.])
    """
    return torch.where(valid, (~dominated(components, weights, groups, valid)).float(), 0.0)


def dominated(components: Mapping[str, Tensor], weights: Mapping[str, float], groups: Tensor, valid: Tensor) -> Tensor:
    """Whether a valid row of the own group is as good in every reward and better in one, (B,) bool; B² pairs."""
    rivals = (groups[:, None] == groups[None]) & valid[None]
    as_good, better = rivals, torch.zeros_like(rivals)
    for name, weight in weights.items():
        value = components[name] * (1 if weight > 0 else -1)
        as_good = as_good & (value[None] >= value[:, None])
        better = better | (value[None] > value[:, None])
    return (as_good & better).any(1)


def base_and_bonus(
    components: Mapping[str, Tensor], weights: Mapping[str, float], groups: Tensor, valid: Tensor, *, base: str
) -> Tensor:
    """B·(w_B + Σ w·Q)/(w_B + Σ w): quality can never pay for a failed instruction (FIRM's CME and QMA).

    CME is execution 0.6 with consistency 0.4; QMA is alignment 0.4 with quality 0.6. `groups` are not read.

    Raises:
        InputError: the base has no weight.

    Example:
        >>> parts = {"execution": torch.tensor([0.0, 1.0]), "consistency": torch.tensor([1.0, 0.5])}
        >>> both = torch.tensor([True, True])
        >>> base_and_bonus(parts, {"execution": 0.6, "consistency": 0.4}, torch.tensor([0, 0]), both, base="execution")
        tensor([0.0000, 0.8000])
    """
    _require(base, weights, "base_and_bonus", "base")
    bonus = {name: w for name, w in weights.items() if name != base}
    share = (weights[base] + weighted_sum(components, bonus, groups, valid)) / sum(weights.values())
    return torch.where(valid, components[base] * share, 0.0).float()


def _require(name: str, weights: Mapping[str, float], function: str, option: str) -> None:
    if name not in weights:
        raise InputError(f"{function} has {option}={name!r}, which is none of the rewards {', '.join(weights)}")


def worst_of(components: Mapping[str, Tensor], weights: Mapping[str, float], groups: Tensor, valid: Tensor) -> Tensor:
    """min w·r over the members of an ensemble (worst-case optimisation, 2310.02743). `groups` are not read."""
    members = torch.stack([w * torch.where(valid, components[n], 0.0) for n, w in weights.items()])
    return members.amin(0).float()


def mean_minus_std(
    components: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    valid: Tensor,
    *,
    k: float = 1.0,
) -> Tensor:
    """Mean minus k·std over the members of an ensemble, weighted by their shares. `groups` are not read.

    Example:
        >>> parts = {"a": torch.tensor([1.0]), "b": torch.tensor([3.0])}
        >>> mean_minus_std(parts, {"a": 1.0, "b": 1.0}, torch.tensor([0]), torch.tensor([True]), k=0.5)
        tensor([1.5000])
    """
    total = sum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    mean = weighted_sum(components, shares, groups, valid)
    variance = weighted_sum({n: (components[n] - mean).square() for n in weights}, shares, groups, valid)
    return mean - k * torch.where(variance > 0, variance, 1.0).sqrt() * (variance > 0)


def uncertainty_weighted(
    components: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    valid: Tensor,
    *,
    uncertainty: str,
    rule: str = "ctrl_u",
) -> Tensor:
    """(Σ w·r)·f(u): rewards count less where the component `uncertainty` is large. `groups` are not read.

    The uncertainty's own weight is not used; give it 0. Rules: `ctrl_u`, `pref_paint`.

    Raises:
        InputError: the uncertainty is none of the rewards, or the rule is unknown.
    """
    _require(uncertainty, weights, "uncertainty_weighted", "uncertainty")
    if rule not in UNCERTAINTY_RULES:
        raise InputError(f"uncertainty_weighted has no rule {rule!r}; write one of {', '.join(UNCERTAINTY_RULES)}")
    others = {name: w for name, w in weights.items() if name != uncertainty}
    factor = UNCERTAINTY_RULES[rule](torch.where(valid, components[uncertainty], 0.0))
    return weighted_sum(components, others, groups, valid) * factor


def gate(
    components: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    valid: Tensor,
    *,
    by: str,
    minimum: float,
) -> Tensor:
    """Σ w·r of the other rewards where `by` reaches its minimum; elsewhere the worst sum of the row's group.

    The worst, not 0: a gated row of negative rewards would otherwise be the best.

    Raises:
        InputError: the gate is none of the rewards.

    Example:
        >>> parts = {"a": torch.tensor([-3.0, -1.0]), "ok": torch.tensor([1.0, 0.0])}
        >>> both = torch.tensor([True, True])
        >>> gate(parts, {"a": 1.0, "ok": 0.0}, torch.tensor([0, 0]), both, by="ok", minimum=0.5)
        tensor([-3., -3.])
    """
    _require(by, weights, "gate", "by")
    total = weighted_sum(components, {name: w for name, w in weights.items() if name != by}, groups, valid)
    worst = -group_max(-total, groups, valid).float()
    return torch.where(valid, torch.where(components[by] >= minimum, total, worst), 0.0)


def win_rates(components: Mapping[str, Tensor], weights: Mapping[str, float], groups: Tensor, valid: Tensor) -> Tensor:
    """Σ w·(share of the group's other rows that the row beats in that reward) (Pref-GRPO, 2508.20751).

    It does not change under any increasing map of a reward.
    """
    total = torch.zeros(len(valid), device=valid.device)
    for name, weight in weights.items():
        total = total + weight * win_rate(components[name], groups, valid)
    return total


AGGREGATIONS: dict[str, Callable[..., Tensor]] = {
    "sum": weighted_sum,
    "group_z": group_z,
    "log_sigmoid": log_sigmoid,
    "log_tamed": log_tamed,
    "pareto": pareto,
    "base_and_bonus": base_and_bonus,
    "worst_of": worst_of,
    "mean_minus_std": mean_minus_std,
    "uncertainty_weighted": uncertainty_weighted,
    "gate": gate,
    "win_rate": win_rates,
}
"""By the names that a config uses."""


def aggregation(name: str, options: Mapping[str, float | str]) -> Callable[..., Tensor]:
    """The function of a name with its options set.

    Raises:
        InputError: the name is unknown, or an option is unknown or missing.

    Example:
        >>> aggregation("gate", {"by": "artifact", "minimum": 0.5}).keywords
        {'by': 'artifact', 'minimum': 0.5}
    """
    if name not in AGGREGATIONS:
        raise InputError(f"there is no aggregation {name!r}; write one of {', '.join(AGGREGATIONS)}")
    function = AGGREGATIONS[name]
    taken = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    unknown = [key for key in options if key not in taken]
    missing = [key for key, p in taken.items() if p.default is p.empty and key not in options]
    if unknown or missing:
        wrong = f"takes no option {unknown[0]!r}" if unknown else f"needs the option {missing[0]!r}"
        raise InputError(f"aggregate {name!r} {wrong}; its options are {', '.join(taken) or 'none'}")
    return partial(function, **options)
