"""Levels as diffusers sets them, and conversions that invert each other."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from visalign import process
from visalign.process import add_noise, read_levels, target, x0_eps


def test_sd3_default_grid_is_shifted_twice():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    expected = [1, 0.96013, 0.91335, 0.85769, 0.79037, 0.70728, 0.60215, 0.46488, 0.27805, 0.00893, 0]
    levels = read_levels(scheduler)
    assert levels.sigma.tolist() == pytest.approx(expected, abs=1e-5)
    assert levels.prediction == "flow"


def test_vp_levels_follow_the_scheduler():
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False)
    scheduler.set_timesteps(5)
    levels = read_levels(scheduler)
    assert torch.allclose(levels.a**2 + levels.s**2, torch.ones(6, dtype=torch.float64))
    assert levels.a[0] ** 2 == pytest.approx(float(scheduler.alphas_cumprod[scheduler.timesteps[0]]), abs=1e-7)
    assert levels.a[-1] ** 2 == pytest.approx(float(scheduler.final_alpha_cumprod), abs=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ve_conversion_reproduces_the_euler_step(prediction):
    scheduler = EulerDiscreteScheduler(prediction_type=prediction)
    scheduler.set_timesteps(6)
    levels = read_levels(scheduler)
    assert levels.scaled_input
    x, output = 5 * torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    i, t = 2, scheduler.timesteps[2]
    scheduler.scale_model_input(x, t)
    expected = scheduler.step(output, t, x).prev_sample
    x0, eps = x0_eps(x, output, levels.a[i], levels.s[i], prediction, levels.scaled_input)
    assert torch.allclose(levels.a[i + 1].float() * x0 + levels.s[i + 1].float() * eps, expected, atol=1e-4)


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v_prediction", "sample"])
def test_conversions_invert_the_target(prediction):
    x0, eps = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    s = torch.tensor([0.2, 0.5, 0.9])
    a = 1 - s if prediction == "flow" else (1 - s**2).sqrt()
    x, output = add_noise(x0, eps, a, s), target(x0, eps, a, s, prediction)
    x0_hat, eps_hat = x0_eps(x, output, a, s, prediction)
    assert torch.allclose(x0_hat, x0, atol=1e-5)
    assert torch.allclose(eps_hat, eps, atol=1e-5)
    assert torch.allclose(process.score(eps_hat, s), -eps / s.view(-1, 1, 1), atol=1e-4)


def test_error_factors_between_spaces():
    x0, eps, delta = torch.randn(1, 8), torch.randn(1, 8), torch.randn(1, 8)
    a, s = torch.tensor(0.6), torch.tensor(0.8)
    x = add_noise(x0, eps, a, s)
    wrong, _ = x0_eps(x, target(x0, eps, a, s, "epsilon") + delta, a, s, "epsilon")
    assert float((wrong - x0).square().sum()) == pytest.approx(float((s / a) ** 2 * delta.square().sum()), rel=1e-4)
    wrong, _ = x0_eps(x, target(x0, eps, a, s, "v_prediction") + delta, a, s, "v_prediction")
    assert float((wrong - x0).square().sum()) == pytest.approx(float(s**2 * delta.square().sum()), rel=1e-4)
