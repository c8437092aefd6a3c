"""P1 and P2: the score-function gradient of sampled steps against finite differences of the exact chain.

Data N(1, ¼) with its exact velocity plus a shift θ, eight even steps, reward −(x − 2)².
"""

import pytest
import torch

from visalign import kernels
from visalign.types import Levels

STEPS, MEAN, VARIANCE, ETA = 8, 1.0, 0.25, 0.7
SIGMA = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
LEVELS = Levels(1 - SIGMA, SIGMA, 1000 * SIGMA[:-1], "flow")


def velocity(x, i, theta):
    s = float(SIGMA[i])
    a = (s - (1 - s) * VARIANCE) / ((1 - s) ** 2 * VARIANCE + s**2)
    return a * (x - (1 - s) * MEAN) - MEAN + theta


def exact_reward(stochastic, shifts):
    """Expected reward of the chain whose velocity is shifted by shifts[i] at step i."""
    mean, var = 0.0, 1.0
    for i in range(STEPS):
        s, kernel = float(SIGMA[i]), kernels.flow_sde if i in stochastic else kernels.ode
        a_next, c, std = kernels.coefficients(kernel, LEVELS, i, ETA)
        slope = velocity(1.0, i, 0.0) - velocity(0.0, i, 0.0)
        shift = velocity(0.0, i, shifts[i])
        gain = a_next * (1 - s * slope) + c * (1 + (1 - s) * slope)
        mean = gain * mean + (-a_next * s + c * (1 - s)) * shift
        var = gain**2 * var + std**2
    return -(var + (mean - 2) ** 2)


def finite_difference(stochastic, moved, h=1e-5):
    up = [h if i in moved else 0.0 for i in range(STEPS)]
    return (exact_reward(stochastic, up) - exact_reward(stochastic, [-v for v in up])) / (2 * h)


def score_gradient(stochastic, samples=4_000_000):
    """Mean of (R − baseline)·∂ Σ log p/∂θ at θ = 0, through Transition.log_prob, with its standard error."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 1, generator=generator)
    scores = torch.zeros(samples)
    for i in range(STEPS):
        if i not in stochastic:
            x = kernels.transition(kernels.ode, LEVELS, i, x, velocity(x, i, 0.0), eta=0.0).mean
            continue
        theta = torch.zeros(samples, 1, requires_grad=True)
        step = kernels.transition(kernels.flow_sde, LEVELS, i, x, velocity(x, i, theta), eta=ETA)
        x_next = step.sample(torch.randn(samples, 1, generator=generator)).detach()
        (gradient,) = torch.autograd.grad(step.log_prob(x_next).sum(), theta)
        scores += gradient.flatten()
        x = x_next
    reward = -(x.flatten() - 2).square()
    terms = (reward - reward.mean()) * scores
    return float(terms.mean()), float(terms.std() / samples**0.5)


def test_p1_one_stochastic_step_gives_that_steps_derivative():
    exact = finite_difference({3}, {3})
    assert exact == pytest.approx(-0.2379, abs=1e-4)
    gradient, error = score_gradient({3})
    assert abs(gradient - exact) < 4 * error
    assert error < 3e-4


def test_p2_deterministic_steps_get_no_credit():
    stochastic = set(range(STEPS - 1))
    frozen = finite_difference(stochastic, stochastic)
    total = finite_difference(stochastic, set(range(STEPS)))
    assert frozen == pytest.approx(-1.319, abs=1e-3)
    assert total == pytest.approx(-1.569, abs=1e-3)
    gradient, error = score_gradient(stochastic)
    assert abs(gradient - frozen) < 4 * error
    assert abs(gradient - total) > 20 * error
