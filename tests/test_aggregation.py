"""Several rewards → one, against closed forms."""

import doctest

import pytest
import torch

from visalign import aggregation
from visalign.advantages import advantages
from visalign.aggregation import group_z, weighted_sum

FUNCTIONS = [weighted_sum, group_z]
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


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
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
