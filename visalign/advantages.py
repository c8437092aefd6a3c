"""Rewards → advantages. Groups are integer ids, one a row, in any order and of any size; invalid rows teach nothing.

Rewards (B,) any float, groups (B,) int64, valid (B,) bool, all on one device. Statistics are taken in float64 over
valid rows alone and are those of the population (divided by n), as Flow-GRPO takes them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "global", "max_group", "none"]


def advantages(
    rewards: Tensor,
    groups: Tensor,
    valid: Tensor,
    *,
    scale: Scale = "global",
    epsilon: float = 1e-4,
    clip: float = 5.0,
) -> Tensor:
    """Rewards centred in their group, divided by a spread, clamped.

    A group without variance gets exactly 0, and so does an invalid row.

    Args:
        rewards: (B,); what stands in invalid rows is not read.
        groups: (B,) int64.
        valid: (B,) bool.
        scale: what divides: `group` std (DanceGRPO), `global` std of all raw rewards (Flow-GRPO, NFT), `max_group`, the
            largest std of a group (LongCat), or `none` (GARDO).
        epsilon: added to the std; at 1e-8 rewards .9000 and .9001 become ±1, at 1e-4 ±⅓.
        clip: the result stays within ± this.

    Returns:
        (B,) float32.

    Example:
        >>> r, g = torch.tensor([1.0, 0.0, 5.0, 5.0]), torch.tensor([7, 7, 2, 2])
        >>> advantages(r, g, torch.ones(4, dtype=torch.bool), scale="none")
        tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    centred = rewards.double() - group_mean(rewards, groups, valid)
    divisor = 1.0 if scale == "none" else _spread(rewards, groups, valid, scale) + epsilon
    return torch.where(valid, centred / divisor, 0.0).clamp(-clip, clip).float()


def _spread(rewards: Tensor, groups: Tensor, valid: Tensor, scale: Scale) -> Tensor:
    if scale == "global":
        return group_std(rewards, torch.zeros_like(groups), valid)
    std = group_std(rewards, groups, valid)
    return std.max() if scale == "max_group" else std


def group_mean(values: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """The mean over the valid rows of each row's group, (B,) float64; 0 where a group has none.

    Example:
        >>> group_mean(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 1]), torch.tensor([True, True, True]))
        tensor([1., 3., 3.], dtype=torch.float64)
    """
    clean = torch.where(valid, values.double(), 0.0)
    shift = torch.where(valid, group_max(values, groups, valid), 0.0)  # a constant group then sums exact zeros
    total = group_sum(clean - shift, groups)
    return group_max(values, groups, valid) + total / group_sum(valid, groups).clamp(min=1)


def group_std(values: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """The population std over the valid rows of each row's group, (B,) float64; exactly 0 where they are equal.

    Example:
        >>> group_std(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 1]), torch.tensor([True, True, True]))
        tensor([0., 1., 1.], dtype=torch.float64)
    """
    deviation = values.double() - group_mean(values, groups, valid)
    return group_mean(deviation.square(), groups, valid).sqrt()


def group_sum(values: Tensor, groups: Tensor) -> Tensor:
    """The sum over each row's group, (B,) float64."""
    ids, index = groups.unique(return_inverse=True)
    return torch.zeros(len(ids), dtype=torch.float64, device=values.device).index_add(0, index, values.double())[index]


def group_max(values: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """The largest valid value of each row's group, (B,) float64; 0 where a group has none."""
    ids, index = groups.unique(return_inverse=True)
    found = torch.zeros(len(ids), dtype=torch.float64, device=values.device)
    return found.scatter_reduce(0, index[valid], values[valid].double(), "amax", include_self=False)[index]


def group_quantile(values: Tensor, groups: Tensor, valid: Tensor, quantile: float) -> Tensor:
    """The quantile over the valid rows of each row's group, (B,) float64; 0 where a group has none."""
    result = torch.zeros(len(values), dtype=torch.float64, device=values.device)
    for group in groups[valid].unique():
        rows = (groups == group) & valid
        result[rows] = values[rows].detach().double().quantile(quantile)
    return result


def zero_std_ratio(rewards: Tensor, groups: Tensor, valid: Tensor) -> float:
    """The share of groups whose valid rewards are all equal (or that have none), in [0, 1]: they teach nothing.

    Example:
        >>> zero_std_ratio(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]), torch.ones(4) > 0)
        0.5
    """
    return (one_per_group(group_std(rewards, groups, valid), groups) == 0).double().mean().item()


def one_per_group(values: Tensor, groups: Tensor) -> Tensor:
    """What all rows of a group share, once for each group in the order of their ids: (B,) → (number of groups,).

    Example:
        >>> one_per_group(torch.tensor([3.0, 1.0, 3.0]), torch.tensor([8, 2, 8]))
        tensor([1., 3.])
    """
    ids, index = groups.unique(return_inverse=True)
    return torch.zeros(len(ids), dtype=values.dtype, device=values.device).index_copy(0, index, values)


def to_unit(advantages: Tensor, clip: float = 5.0) -> Tensor:
    """Advantages as optimality probabilities in [0, 1]: clip(A/clip, −1, 1)/2 + ½ (DiffusionNFT, arXiv 2509.16117).

    Example:
        >>> to_unit(torch.tensor([-9.0, 0.0, 2.5]))
        tensor([0.0000, 0.5000, 0.7500])
    """
    return (advantages / clip).clamp(-1, 1) / 2 + 0.5


def keep_extremes(advantages: Tensor, rewards: Tensor, groups: Tensor, count: int) -> Tensor:
    """Advantages of the best and the worst count//2 rows of each group, 0 for the others (DanceGRPO: 8 of 24).

    Invalid rows have advantage 0 and stand in the middle. Rewards order what the clip made equal, then the row number.

    Args:
        advantages: (B,) float32.
        rewards: (B,), what they were made from.
        groups: (B,) int64.
        count: rows kept of each group; smaller groups are kept whole.

    Example:
        >>> a = torch.tensor([1.0, -0.2, 0.3, -1.0])
        >>> keep_extremes(a, a, torch.zeros(4, dtype=torch.long), 2)
        tensor([ 1.,  0.,  0., -1.])
    """
    order = torch.arange(len(groups), device=groups.device)
    for key in (rewards, advantages, groups):  # stable sorts: the last key leads
        order = order[key[order].argsort(stable=True)]
    place, every = order.argsort(), torch.ones_like(groups, dtype=torch.bool)
    from_best = group_max(place, groups, every) - place
    from_worst = group_sum(every, groups) - 1 - from_best
    return torch.where((from_best < count // 2) | (from_worst < count // 2), advantages, 0.0)


def leave_one_out(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Rewards minus the mean of the others in the group (LOOP, arXiv 2503.00897), (B,) float32; 0 for one alone.

    Example:
        >>> leave_one_out(torch.tensor([3.0, 1.0, 2.0]), torch.zeros(3, dtype=torch.long), torch.ones(3) > 0)
        tensor([ 1.5000, -1.5000,  0.0000])
    """
    count = group_sum(valid, groups)
    centred = rewards.double() - group_mean(rewards, groups, valid)
    return torch.where(valid, centred * count / (count - 1).clamp(min=1), 0.0).float()


def win_rate(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Share of the others in the group that a row beats, ties count half (Pref-GRPO, arXiv 2508.20751), (B,) float32.

    In [0, 1]; the rates of a group of G sum to G/2, so one alone has ½. Invalid rows get 0. Compares all B² pairs.

    Example:
        >>> win_rate(torch.tensor([3.0, 1.0, 1.0]), torch.zeros(3, dtype=torch.long), torch.ones(3) > 0)
        tensor([1.0000, 0.2500, 0.2500])
    """
    count = group_sum(valid, groups)
    rate = (_beaten(rewards, groups, valid) - 0.5) / (count - 1).clamp(min=1)
    return torch.where(valid, torch.where(count > 1, rate, 0.5), 0.0).float()


def rank(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Rank in the group over its size, argsort(argsort(r))/G, tied ranks averaged, (B,) float32 in [0, 1).

    Invalid rows get 0. Compares all B² pairs.

    Example:
        >>> rank(torch.tensor([0.3, 0.1, 0.2, 0.4]), torch.zeros(4, dtype=torch.long), torch.ones(4) > 0)
        tensor([0.5000, 0.0000, 0.2500, 0.7500])
    """
    place = (_beaten(rewards, groups, valid) - 0.5) / group_sum(valid, groups).clamp(min=1)
    return torch.where(valid, place, 0.0).float()


def _beaten(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Valid rows of the own group that are worse, and half of the equal ones, itself among them; (B,) float64."""
    rivals = (groups[:, None] == groups[None]) & valid[None]
    worse, equal = rewards[:, None] > rewards[None], rewards[:, None] == rewards[None]
    return (rivals & worse).sum(1).double() + 0.5 * (rivals & equal).sum(1)
