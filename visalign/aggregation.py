"""Several rewards → one. Every function has one signature and is aware of rows that could not be judged.

    f(components: name → (B,), weights: name → float, groups (B,) int64, valid (B,) bool) → (B,) float32

Only the components that have a weight count. Groups are integer ids in any order. Invalid rows are not read, enter no
statistic, and get 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from visalign.advantages import group_mean, group_std


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
