"""Intervals against scipy, closed forms and their own coverage."""

import math

import pytest
import torch
from scipy import stats

from visalign.statistics import mean_interval, paired_difference, student_quantile, win_rate
from visalign.types import InputError


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 30, 149, 5000])
@pytest.mark.parametrize("probability", [0.9, 0.95, 0.975, 0.995])
def test_student_quantile_equals_scipy(freedom, probability):
    assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=2e-4)


def test_mean_interval_equals_scipy():
    values = torch.randn(25, generator=torch.Generator().manual_seed(0)).double()
    low, high = stats.t.interval(0.95, 24, loc=values.mean(), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx((float(values.mean()), low, high), rel=1e-4)


def test_invalid_values_are_left_out_and_not_counted_as_zero():
    values = torch.tensor([1.0, math.nan, 3.0])
    assert mean_interval(values)[0] == 2.0
    with pytest.raises(InputError, match="no valid score"):
        mean_interval(torch.tensor([math.nan]))


def test_overall_is_the_mean_of_the_category_means():
    values, tags = torch.tensor([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"]
    assert mean_interval(values, strata=tags)[0] == 0.5
    assert mean_interval(values)[0] == 0.75


def test_single_value_has_no_interval():
    mean, low, high = mean_interval(torch.tensor([2.0]))
    assert mean == 2.0
    assert math.isnan(low)
    assert math.isnan(high)


def test_stratified_interval_covers():
    generator = torch.Generator().manual_seed(3)
    tags = ["a"] * 30 + ["b"] * 8
    truth, hits = 0.5, 0
    for _ in range(400):
        values = torch.cat([torch.randn(30, generator=generator), 1 + 2 * torch.randn(8, generator=generator)])
        _, low, high = mean_interval(values, strata=tags)
        hits += low <= truth <= high
    assert 0.90 <= hits / 400 <= 0.98


@pytest.mark.parametrize("strata", [None, ["a", "b", "c", "d"] * 15])
def test_bootstrap_of_the_paired_difference_covers(strata):
    generator = torch.Generator().manual_seed(1)
    truth, hits = 0.2, 0
    for trial in range(300):
        base = torch.rand(60, generator=generator)
        after = base + truth + 0.5 * torch.randn(60, generator=generator)
        _, low, high = paired_difference(base, after, seed=trial, resamples=1000, strata=strata)
        hits += low <= truth <= high
    assert 0.90 <= hits / 300 <= 0.98  # 95 % with three standard errors, percentile intervals lean to the low side


def test_paired_difference_uses_the_pairing():
    base = torch.linspace(0, 100, 50)
    delta, low, high = paired_difference(base, base + 1, seed=0)
    assert (delta, low, high) == pytest.approx((1.0, 1.0, 1.0))


def test_paired_difference_repeats_and_skips_half_invalid_pairs():
    before = torch.tensor([0.0, 0.0, math.nan, 1.0])
    after = torch.tensor([1.0, math.nan, 5.0, 1.0])
    first = paired_difference(before, after, seed=7)
    assert first == paired_difference(before, after, seed=7)
    assert first[0] == 0.5


def test_paired_difference_refuses_what_does_not_pair():
    with pytest.raises(InputError, match="do not pair up"):
        paired_difference(torch.zeros(3), torch.zeros(4), seed=0)


def test_many_prompts_are_resampled_in_chunks():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    delta, low, high = paired_difference(torch.zeros(20_000), values, seed=0, resamples=500)
    assert low < delta < high
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(20_000), rel=0.15)


def test_win_rate_equals_wilson_of_scipy():
    a, b = torch.tensor([1.0] * 30 + [0.0] * 10), torch.tensor([0.5] * 40)
    expected = stats.binomtest(30, 40).proportion_ci(method="wilson")
    assert win_rate(a, b) == pytest.approx((0.75, expected.low, expected.high))


def test_win_rate_counts_ties_half_and_is_antisymmetric():
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 4.0])
    assert win_rate(a, b)[0] == 0.5
    assert win_rate(a, a)[0] == 0.5
    assert win_rate(a, b)[0] + win_rate(b, a)[0] == 1.0
    assert win_rate(torch.ones(5), torch.zeros(5))[2] == pytest.approx(1.0)
