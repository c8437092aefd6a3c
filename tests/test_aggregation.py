"""Several rewards → one, against closed forms."""

import doctest
import math

import pytest
import torch

from visalign import aggregation
from visalign.advantages import advantages
from visalign.aggregation import (
    AGGREGATIONS,
    base_and_bonus,
    gate,
    group_z,
    log_sigmoid,
    log_tamed,
    mean_minus_std,
    pareto,
    uncertainty_weighted,
    weighted_sum,
    win_rates,
    worst_of,
)
from visalign.aggregation import (
    aggregation as named,
)
from visalign.types import InputError
from visalign.uncertainty import ctrl_u, feature_uncertainty, pref_paint

OPTIONS = {
    "base_and_bonus": {"base": "a"},
    "uncertainty_weighted": {"uncertainty": "b"},
    "gate": {"by": "a", "minimum": 0.5},
}
FUNCTIONS = [named(name, OPTIONS.get(name, {})) for name in AGGREGATIONS]
EVERY = torch.ones(3, dtype=torch.bool)
GROUP = torch.zeros(3, dtype=torch.long)
WEIGHTS = {"a": 1.0, "b": -0.5, "c": 3.0}


def parts(seed):
    g = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 5, (24,), generator=g) * 10**15
    components = {n: torch.rand(24, generator=g) * scale for n, scale in [("a", 1), ("b", 26), ("c", 1e-3), ("a/x", 1)]}
    valid = torch.rand(24, generator=g) > 0.2
    return {n: torch.where(valid, v, torch.nan) for n, v in components.items()}, groups, valid


def test_weighted_sum():
    components, groups, valid = parts(0)
    expected = components["a"] - 0.5 * components["b"] + 3 * components["c"]
    result = weighted_sum(components, WEIGHTS, groups, valid)
    torch.testing.assert_close(result[valid], expected[valid])


def test_weighted_sum_of_nothing_is_zero():
    assert weighted_sum({}, {}, torch.tensor([0, 0]), torch.tensor([True, True])).tolist() == [0.0, 0.0]


def test_weighted_sum_carries_gradients_of_valid_rows():
    values = torch.tensor([1.0, 2.0, torch.nan], requires_grad=True)
    valid = torch.tensor([True, True, False])
    weighted_sum({"a": values}, {"a": 2.0}, torch.zeros(3).long(), valid).sum().backward()
    assert values.grad.tolist() == [2.0, 2.0, 0.0]


@pytest.mark.parametrize("seed", range(4))
def test_group_z_of_one_reward_is_the_group_advantage(seed):
    components, groups, valid = parts(seed)
    expected = advantages(components["a"], groups, valid, scale="group", epsilon=1e-4, clip=100.0)
    torch.testing.assert_close(group_z(components, {"a": 1.0}, groups, valid), expected)


@pytest.mark.parametrize("seed", range(4))
def test_gdpo_scale_invariance_is_exact(seed):
    """R1: r → a·r + b; with dyadic numbers no rounding stands between."""
    g = torch.Generator().manual_seed(seed)
    groups, valid = torch.arange(24) % 3, torch.rand(24, generator=g) > 0.2
    components = {n: torch.randint(0, 16, (24,), generator=g) / 8 for n in "ab"}
    scaled = {"a": 4 * components["a"] + 3, "b": components["b"] / 16 - 2}
    weights = {"a": 0.3, "b": 0.7}
    first, second = (group_z(c, weights, groups, valid, epsilon=0) for c in (components, scaled))
    assert torch.equal(first, second)


@pytest.mark.parametrize("seed", range(4))
def test_gdpo_scale_invariance(seed):
    components, groups, valid = parts(seed)
    scaled = {"a": components["a"].double() * 17.3 - 5, "b": components["b"].double() * 0.01 + 9, "c": components["c"]}
    first, second = (group_z(c, WEIGHTS, groups, valid, epsilon=0) for c in (components, scaled))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_group_z_of_a_constant_reward_is_exactly_zero():
    """R2, with and without epsilon."""
    components = {"a": torch.full((6,), 0.1), "b": torch.tensor([0.0, 1.0, 2.0, 5.0, 5.0, 5.0])}
    groups, valid = torch.tensor([0, 0, 0, 1, 1, 1]), torch.ones(6, dtype=torch.bool)
    for epsilon in (0.0, 1e-4):
        result = group_z(components, {"a": 1.0, "b": 1.0}, groups, valid, epsilon=epsilon)
        assert (result[3:] == 0).all()
        torch.testing.assert_close(result[:3], torch.tensor([-1.0, 0.0, 1.0]) * 1.5**0.5, rtol=0, atol=1e-3)


@pytest.mark.parametrize("function", FUNCTIONS, ids=list(AGGREGATIONS))
@pytest.mark.parametrize("seed", range(3))
def test_common_contract(function, seed):
    """float32, 0 in invalid rows, blind to them, and rows in any order."""
    components, groups, valid = parts(seed)
    result = function(components, WEIGHTS, groups, valid)
    assert result.dtype == torch.float32
    assert (result[~valid] == 0).all()
    absent = function({n: v[valid] for n, v in components.items()}, WEIGHTS, groups[valid], valid[valid])
    torch.testing.assert_close(result[valid], absent)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    permuted = function({n: v[order] for n, v in components.items()}, WEIGHTS, groups[order], valid[order])
    torch.testing.assert_close(permuted, result[order], rtol=1e-5, atol=1e-6)


def test_examples():
    result = doctest.testmod(aggregation)
    assert result.attempted > 0
    assert result.failed == 0


def test_log_sigmoid_is_the_log_probability_of_a_conjunction():
    """Two rewards at their references: ½·½; it saturates above, and the worst property decides below."""
    values = torch.tensor([0.0, 40.0, -40.0])
    result = log_sigmoid({"a": values, "b": torch.zeros(3)}, {"a": 1.0, "b": 1.0}, GROUP, EVERY, quantile=0.5)
    expected = [2 * math.log(0.5), math.log(0.5), -40 + math.log(0.5)]
    torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_log_sigmoid_does_not_see_a_shift():
    components, groups, valid = parts(1)
    shifted = {n: v + 7 for n, v in components.items()}
    first, second = (log_sigmoid(c, WEIGHTS, groups, valid) for c in (components, shifted))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_log_tamed_tames_what_varies_most():
    calm, wild = torch.tensor([1.0, 1.1, 1.2]), torch.tensor([0.0, 1.0, 9.0])
    result = log_tamed({"a": calm, "b": wild}, {"a": 1.0, "b": 2.0}, GROUP, EVERY)
    torch.testing.assert_close(result, calm + 2 * torch.log(1 + wild))
    untouched = log_tamed({"a": calm, "b": wild}, {"a": 1.0, "b": 2.0}, GROUP, EVERY, threshold=100.0)
    torch.testing.assert_close(untouched, calm + 2 * wild)


def test_log_tamed_refuses_negative_rewards():
    with pytest.raises(InputError, match="'a' gave -1"):
        log_tamed({"a": torch.tensor([-1.0, 1.0, 2.0])}, {"a": 1.0}, GROUP, EVERY)


@pytest.mark.parametrize("seed", range(4))
def test_pareto_by_brute_force(seed):
    components, groups, valid = parts(seed)
    result = pareto(components, WEIGHTS, groups, valid)
    points = torch.stack([components["a"], -components["b"], components["c"]], 1)
    for i in range(24):
        rivals = [j for j in range(24) if valid[j] and groups[j] == groups[i]]
        beaten = any(bool((points[j] >= points[i]).all() and (points[j] > points[i]).any()) for j in rivals)
        assert result[i] == float(bool(valid[i]) and not beaten)


def test_pareto_and_win_rates_do_not_see_increasing_maps():
    components, groups, valid = parts(2)
    bent = {n: v.exp() * 3 + 1 for n, v in components.items()}
    for function in (pareto, win_rates):
        assert torch.equal(function(components, WEIGHTS, groups, valid), function(bent, WEIGHTS, groups, valid))


def test_base_and_bonus_is_cme():
    """FIRM: E·(0.6 + 0.4·C); no execution, no reward, however consistent."""
    e, c = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 0.25, 1.0])
    result = base_and_bonus({"e": e, "c": c}, {"e": 0.6, "c": 0.4}, GROUP, EVERY, base="e")
    torch.testing.assert_close(result, e * (0.6 + 0.4 * c))


def test_ensembles():
    members = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([3.0, 2.0, 1.0])}
    equal = {"a": 1.0, "b": 1.0}
    assert worst_of(members, equal, GROUP, EVERY).tolist() == [1.0, 2.0, 1.0]
    assert mean_minus_std(members, equal, GROUP, EVERY, k=1.0).tolist() == [1.0, 2.0, 1.0]
    assert mean_minus_std(members, equal, GROUP, EVERY, k=0.0).tolist() == [2.0, 2.0, 2.0]


def test_uncertainty_weights():
    u = torch.tensor([0.0, 1.0, 14.0])
    torch.testing.assert_close(ctrl_u(u), torch.tensor([1.0, math.exp(-1), math.exp(-14)]))
    torch.testing.assert_close(pref_paint(u), torch.tensor([math.exp(0.7), math.exp(0.65), 1.0]))
    assert float(pref_paint(torch.tensor([-100.0]))) == pytest.approx(2.21)
    weights = {"r": 2.0, "u": 0.0}
    result = uncertainty_weighted({"r": torch.ones(3), "u": u}, weights, GROUP, EVERY, uncertainty="u")
    torch.testing.assert_close(result, 2 * ctrl_u(u))


def test_feature_uncertainty_of_a_diagonal():
    z = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    torch.testing.assert_close(feature_uncertainty(z, 2 * torch.eye(2)), torch.tensor([2.5, 0.5]))


def test_gated_rows_are_never_the_best_of_their_group():
    for seed in range(4):
        components, groups, valid = parts(seed)
        shifted = components | {"b": components["b"] - 100}
        result = gate(shifted, {"a": 0.0, "b": 1.0}, groups, valid, by="a", minimum=0.5)
        for group in groups[valid].unique():
            rows = valid & (groups == group)
            shut, open_ = result[rows & (components["a"] < 0.5)], result[rows & (components["a"] >= 0.5)]
            assert len(shut) == 0 or len(open_) == 0 or shut.max() <= open_.min()


def test_unknown_names_and_options_are_refused():
    with pytest.raises(InputError, match="no aggregation 'mean'"):
        named("mean", {})
    with pytest.raises(InputError, match="takes no option 'k'"):
        named("sum", {"k": 1})
    with pytest.raises(InputError, match="needs the option 'minimum'"):
        named("gate", {"by": "a"})
    with pytest.raises(InputError, match="none of the rewards"):
        gate({"a": torch.ones(3)}, {"a": 1.0}, GROUP, EVERY, by="x", minimum=0.0)
