"""Advantages against the formulas of specs/online_rl.md section 5, group by group in plain numpy."""

import doctest

import numpy as np
import pytest
import torch

from visalign import advantages as module
from visalign import credit
from visalign.advantages import (
    advantages,
    group_mean,
    group_std,
    keep_extremes,
    leave_one_out,
    rank,
    to_unit,
    win_rate,
    zero_std_ratio,
)

SEEDS = range(6)


def layout(seed, invalid=0.2, levels=None):
    """Rewards in ragged groups with large ids in random order; NaN where invalid."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 8, (6,), generator=g)
    groups = torch.repeat_interleave(torch.randint(-(2**62), 2**62, (6,), generator=g), sizes)
    groups = groups[torch.randperm(len(groups), generator=g)]
    rewards = torch.rand(len(groups), generator=g) * 3 - 1
    if levels:
        rewards = (rewards * levels).round()
    valid = torch.rand(len(groups), generator=g) >= invalid
    return torch.where(valid, rewards, torch.nan), groups, valid


def by_group(rewards, groups, valid, function):
    """A numpy function of the valid rewards of each group, put back in place; 0 where invalid."""
    result = np.zeros(len(rewards))
    for group in set(groups.tolist()):
        rows = ((groups == group) & valid).numpy()
        if rows.any():
            result[rows] = function(rewards.double().numpy()[rows])
    return torch.from_numpy(result).float()


def all_valid(count):
    return torch.ones(count, dtype=torch.bool)


@pytest.mark.parametrize(("epsilon", "expected"), [(1e-8, 1.0), (1e-4, 1 / 3)])
def test_tiny_gap(epsilon, expected):
    """R3."""
    rewards, groups = torch.tensor([0.9000, 0.9001]), torch.zeros(2, dtype=torch.long)
    result = advantages(rewards, groups, all_valid(2), scale="group", epsilon=epsilon)
    torch.testing.assert_close(result, torch.tensor([-expected, expected]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", ["group", "global", "max_group", "none"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.9, 1e6, -7.3])
def test_zero_variance_is_exactly_zero(scale, value):
    """R2, with values whose mean rounds, and a second group so that the global std is not 0."""
    rewards = torch.tensor([value] * 7 + [0.0, 1.0])
    groups = torch.tensor([5] * 7 + [3, 3])
    result = advantages(rewards, groups, all_valid(9), scale=scale, epsilon=1e-12)
    assert (result[:7] == 0).all()
    assert result[7] == -result[8] != 0


@pytest.mark.parametrize("scale", ["group", "global", "max_group", "none"])
def test_all_rewards_equal(scale):
    result = advantages(torch.full((6,), 0.7), torch.tensor([0, 0, 0, 1, 1, 1]), all_valid(6), scale=scale)
    assert (result == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_scales_against_numpy(seed):
    rewards, groups, valid = layout(seed)
    eps, known = 1e-4, rewards.double().numpy()[valid.numpy()]
    spreads = [rewards.double().numpy()[((groups == g) & valid).numpy()].std() for g in set(groups[valid].tolist())]
    expected = {
        "group": by_group(rewards, groups, valid, lambda r: (r - r.mean()) / (r.std() + eps)),
        "global": by_group(rewards, groups, valid, lambda r: (r - r.mean()) / (known.std() + eps)),
        "max_group": by_group(rewards, groups, valid, lambda r: (r - r.mean()) / (max(spreads) + eps)),
        "none": by_group(rewards, groups, valid, lambda r: r - r.mean()),
    }
    for scale, values in expected.items():
        result = advantages(rewards, groups, valid, scale=scale, epsilon=eps, clip=5.0)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, values.clamp(-5, 5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_permuted_rows_give_permuted_results(seed):
    rewards, groups, valid = layout(seed)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    functions = [lambda *a, s=s: advantages(*a, scale=s) for s in ("group", "global", "max_group", "none")]
    for function in [*functions, leave_one_out, win_rate, rank]:
        straight, permuted = function(rewards, groups, valid), function(rewards[order], groups[order], valid[order])
        torch.testing.assert_close(permuted, straight[order], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_invalid_rows_are_as_if_absent(seed):
    rewards, groups, valid = layout(seed)
    for function in (advantages, leave_one_out, win_rate, rank):
        with_them = function(rewards, groups, valid)
        without = function(rewards[valid], groups[valid], valid[valid])
        assert (with_them[~valid] == 0).all()
        torch.testing.assert_close(with_them[valid], without, rtol=1e-6, atol=1e-7)


def test_failure_leaves_the_good_samples_their_places():
    """specs/rewards.md section 5.2: with masked statistics .80, .82, .84 and a failure are −1.22, 0, 1.22 of a std."""
    rewards, groups = torch.tensor([0.80, 0.82, 0.84, torch.nan]), torch.zeros(4, dtype=torch.long)
    result = advantages(rewards, groups, torch.tensor([True, True, True, False]), scale="group", epsilon=1e-8)
    torch.testing.assert_close(result, torch.tensor([-(1.5**0.5), 0.0, 1.5**0.5, 0.0]), rtol=0, atol=1e-4)


def test_nothing_valid():
    none = torch.zeros(3, dtype=torch.bool)
    rewards, groups = torch.full((3,), torch.nan), torch.tensor([0, 0, 1])
    for scale in ("group", "global", "max_group", "none"):
        assert (advantages(rewards, groups, none, scale=scale) == 0).all()
    assert (win_rate(rewards, groups, none) == 0).all()
    assert zero_std_ratio(rewards, groups, none) == 1.0


def test_clip():
    rewards, groups = torch.tensor([0.0] * 99 + [1.0]), torch.zeros(100, dtype=torch.long)
    result = advantages(rewards, groups, all_valid(100), scale="group", clip=2.0)
    assert result.max() == 2.0


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_win_rates_sum_to_half_the_group(seed, levels):
    """R1, with many ties when rewards have few levels."""
    rewards, groups, valid = layout(seed, levels=levels)
    rates = win_rate(rewards, groups, valid)
    assert ((rates >= 0) & (rates <= 1)).all()
    for group in set(groups.tolist()):
        rows = (groups == group) & valid
        torch.testing.assert_close(rates[rows].sum(), rows.sum() / 2, rtol=1e-6, atol=1e-6)


def test_win_rate_counts_ties_half():
    rates = win_rate(torch.tensor([2.0, 2.0, 1.0, 3.0]), torch.zeros(4, dtype=torch.long), all_valid(4))
    torch.testing.assert_close(rates, torch.tensor([1.5, 1.5, 0.0, 3.0]) / 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_rank_is_argsort_of_argsort(seed):
    rewards, groups, valid = layout(seed)
    expected = by_group(rewards, groups, valid, lambda r: r.argsort().argsort() / len(r))
    torch.testing.assert_close(rank(rewards, groups, valid), expected, rtol=1e-6, atol=1e-7)


def test_rank_averages_ties():
    ranks = rank(torch.tensor([1.0, 1.0, 0.0, 2.0]), torch.zeros(4, dtype=torch.long), all_valid(4))
    torch.testing.assert_close(ranks, torch.tensor([1.5, 1.5, 0.0, 3.0]) / 4)


@pytest.mark.parametrize("seed", SEEDS)
def test_leave_one_out_against_its_definition(seed):
    def others(r):
        return np.array([r[i] - np.delete(r, i).mean() if len(r) > 1 else 0.0 for i in range(len(r))])

    rewards, groups, valid = layout(seed)
    expected = by_group(rewards, groups, valid, others)
    torch.testing.assert_close(leave_one_out(rewards, groups, valid), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_group_statistics(seed):
    rewards, groups, valid = layout(seed)
    mean, std = group_mean(rewards, groups, valid), group_std(rewards, groups, valid)
    assert mean.dtype == std.dtype == torch.float64
    expected = by_group(rewards, groups, valid, lambda r: r.mean()), by_group(rewards, groups, valid, lambda r: r.std())
    torch.testing.assert_close((mean * valid).float(), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((std * valid).float(), expected[1], rtol=1e-5, atol=1e-6)


def test_zero_std_ratio_does_not_see_invalid_rows():
    rewards = torch.tensor([0.1, 0.1, torch.nan, 0.3, 0.4])
    groups, valid = torch.tensor([9, 9, 9, 1, 1]), torch.tensor([True, True, False, True, True])
    assert zero_std_ratio(rewards, groups, valid) == 0.5


def test_to_unit():
    result = to_unit(torch.tensor([-10.0, -5.0, 0.0, 1.0, 5.0, 10.0]), clip=5.0)
    torch.testing.assert_close(result, torch.tensor([0.0, 0.0, 0.5, 0.6, 1.0, 1.0]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [2, 4, 5, 100])
def test_keep_extremes(seed, count):
    rewards, groups, _ = layout(seed, invalid=0)
    values = advantages(rewards, groups, all_valid(len(rewards)), scale="none")
    kept = keep_extremes(values, rewards, groups, count)

    def extremes(r):
        place, half = r.argsort().argsort(), count // 2
        return np.where((place < half) | (place >= len(r) - half), r - r.mean(), 0)

    expected = by_group(rewards, groups, all_valid(len(rewards)), extremes)
    torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-6)


def test_keep_extremes_does_not_take_an_invalid_row_for_the_worst():
    rewards, groups = torch.tensor([5.0, 6.0, 7.0, 8.0, 0.0]), torch.zeros(5, dtype=torch.long)
    valid = torch.tensor([True, True, True, True, False])
    kept = keep_extremes(advantages(rewards, groups, valid, scale="none"), rewards, groups, 2)
    torch.testing.assert_close(kept, torch.tensor([-1.5, 0.0, 0.0, 1.5, 0.0]))


def test_keep_extremes_orders_what_the_clip_made_equal():
    rewards, groups = torch.tensor([3.0, 1.0, 2.0, -6.0]), torch.zeros(4, dtype=torch.long)
    values = advantages(rewards, groups, all_valid(4), scale="none", clip=0.5)
    assert keep_extremes(values, rewards, groups, 2).tolist() == [0.5, 0.0, 0.0, -0.5]


def test_outcome_credit():
    rewards = torch.tensor([1.0, -2.0])
    result = credit.CREDITS["outcome"](rewards, 3)
    assert result.tolist() == [[1.0] * 3, [-2.0] * 3]


@pytest.mark.parametrize("example", [module, credit], ids=lambda m: m.__name__)
def test_examples(example):
    result = doctest.testmod(example)
    assert result.attempted > 0
    assert result.failed == 0
