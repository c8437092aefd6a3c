"""Kernels against closed forms: K1–K6, L1–L4, P6 and the table of step weights."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch.distributions import Normal, kl_divergence

from visalign import kernels
from visalign.kernels import KERNELS, Transition
from visalign.types import InputError, Levels


def flow_levels(sigmas):
    s = torch.as_tensor(sigmas, dtype=torch.float64)
    return Levels(1 - s, s, 1000 * s[:-1], "flow")


def shifted_grid(n, shift=3.0):
    """SD3's grid from explicit sigmas: one shift."""
    s = torch.linspace(1, 1 / n, n, dtype=torch.float64)
    return flow_levels(torch.cat([shift * s / (1 + (shift - 1) * s), torch.zeros(1, dtype=torch.float64)]))


def double_shifted_grid(n=10):
    """SD3's default grid in diffusers: the shifted sigma_min is shifted again."""
    low = 3 * 0.001 / (1 + 2 * 0.001)
    s = torch.linspace(1, low, n, dtype=torch.float64)
    return flow_levels(torch.cat([3 * s / (1 + 2 * s), torch.zeros(1, dtype=torch.float64)]))


ETAS = {
    "ode": 0.0,
    "flow_sde": 0.7,
    "dance_sde": 0.3,
    "cps": 0.7,
    "ddim": 1.0,
    "renoise": 1.0,
    "wan_linear": 1.0,
    "memoryless": 1.0,
}


def published_form(name, x, v, now, after, sigma_max, eta):
    """Mean and std as the authors' code writes them, independent of (c, std)."""
    dt = after - now
    if name == "ode":
        return x + dt * v, 0.0
    if name in ("flow_sde", "memoryless", "dance_sde", "wan_linear"):
        eta = math.sqrt(2) if name == "memoryless" else eta
        g = {
            "dance_sde": eta,
            "wan_linear": eta * sigma_max * now,
        }.get(name, eta * math.sqrt(now / (1 - (sigma_max if now == 1 else now))))
        mean = x * (1 + g**2 * dt / (2 * now)) + v * (1 + g**2 * (1 - now) / (2 * now)) * dt
        return mean, g * math.sqrt(-dt)
    x0, x1 = x - now * v, x + (1 - now) * v
    if name == "cps":
        std = after * math.sin(eta * math.pi / 2)
    elif name == "ddim":
        std = eta * after * math.sqrt(1 - (after * (1 - now) / (now * (1 - after))) ** 2)
    else:
        std = after
    return (1 - after) * x0 + math.sqrt(max(after**2 - std**2, 0.0)) * x1, std


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "levels", [shifted_grid(10), double_shifted_grid(10), shifted_grid(28)], ids=["sd3", "double", "28"]
)
def test_k1_algebra_equals_the_published_form(name, levels):
    x, v = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    sigma = levels.sigma
    for i in range(len(levels)):
        a_next, c, std = kernels.coefficients(KERNELS[name], levels, i, ETAS[name])
        mean = a_next * (x - sigma[i] * v) + c * (x + (1 - sigma[i]) * v)
        expected, expected_std = published_form(
            name, x, v, float(sigma[i]), float(sigma[i + 1]), float(sigma[1]), ETAS[name]
        )
        assert torch.allclose(mean, expected, atol=1e-12, rtol=0)
        assert abs(std - expected_std) <= 1e-12


def final_moments(kernel, eta, levels, m=1.0, variance=0.25):
    """Mean and variance that a kernel's chain ends with under the exact velocity of N(m, variance)."""
    mean, var = 0.0, 1.0
    sigma = levels.sigma
    for i in range(len(levels)):
        s = float(sigma[i])
        a = (s - (1 - s) * variance) / ((1 - s) ** 2 * variance + s**2)
        b = -m - a * (1 - s) * m
        a_next, c, std = kernels.coefficients(kernel, levels, i, eta)
        gain = a_next * (1 - s * a) + c * (1 + (1 - s) * a)
        shift = (-a_next * s + c * (1 - s)) * b
        mean, var = gain * mean + shift, gain**2 * var + std**2
    return mean, var


K2 = {
    "ode": (0.0, [0.1367, 0.1862, 0.2224, 0.2428, 0.2493]),
    "flow_sde": (0.7, [0.1801, 0.2106, 0.2339, 0.2466, 0.2500]),
    "dance_sde": (0.3, [0.1484, 0.1929, 0.2253, 0.2436, 0.2494]),
    "ddim": (1.0, [0.1090, 0.1504, 0.1954, 0.2325, 0.2480]),
    "cps": (0.7, [0.1073, 0.1356, 0.1575, 0.1725, 0.1799]),
}


@pytest.mark.parametrize("name", K2)
def test_k2_final_variance_of_the_gaussian_oracle(name):
    eta, expected = K2[name]
    for n, variance in zip([10, 20, 50, 200, 2000], expected, strict=True):
        mean, var = final_moments(KERNELS[name], eta, shifted_grid(n))
        assert var == pytest.approx(variance, abs=6e-5)
        assert mean == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", ["cps", "ddim"])
def test_k3_coefficient_preserving_kernels_have_no_excess_noise(name):
    levels = shifted_grid(10)
    for i in range(9):
        assert kernels.excess_noise(KERNELS[name], levels, i, 0.7) == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("name", ["flow_sde", "dance_sde"])
def test_k3_excess_noise_of_the_sdes_is_second_order_in_the_step(name):
    coarse, fine = (kernels.excess_noise(KERNELS[name], flow_levels([0.6, 0.6 - h, 0.0]), 0, 0.5) for h in (0.02, 0.01))
    assert coarse / fine == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("name", ["flow_sde", "dance_sde", "cps", "ddim", "wan_linear"])
def test_k4_without_noise_every_kernel_is_the_ode(name):
    levels = shifted_grid(10)
    for i in range(len(levels)):
        assert kernels.coefficients(KERNELS[name], levels, i, 0.0) == kernels.coefficients(kernels.ode, levels, i, 0.0)


def test_k4_cps_at_one_is_renoising():
    levels = shifted_grid(10)
    for i in range(len(levels)):
        assert kernels.coefficients(kernels.cps, levels, i, 1.0) == kernels.coefficients(
            kernels.renoise, levels, i, 1.0
        )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_k4_ddim_on_a_vp_path_is_diffusers_ddim(eta):
    from visalign.process import read_levels

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
    scheduler.set_timesteps(10)
    levels = read_levels(scheduler)
    x, output, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    for i, t in enumerate(scheduler.timesteps):
        step = kernels.transition(kernels.ddim, levels, i, x, output, eta=eta)
        expected = scheduler.step(output, t, x, eta=eta, variance_noise=noise).prev_sample
        assert torch.allclose(step.sample(noise), expected, atol=2e-6)


def test_k5_flow_sde_sensitivity_is_constant():
    levels, eta = double_shifted_grid(), 0.7
    for i in range(1, 9):
        s, after = float(levels.s[i]), float(levels.s[i + 1])
        _, c, _ = kernels.coefficients(kernels.flow_sde, levels, i, eta)
        sensitivity = -s * (1 - after) + (1 - s) * c
        assert sensitivity / (after - s) == pytest.approx(1.245, abs=1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_k6_autograd_sensitivity_equals_the_closed_form(name):
    levels, i = shifted_grid(10), 4
    x, v = torch.randn(1, 1), torch.randn(1, 1, requires_grad=True)
    step = kernels.transition(KERNELS[name], levels, i, x, v, eta=ETAS[name])
    (gradient,) = torch.autograd.grad(step.mean.sum(), v)
    a_next, c, _ = kernels.coefficients(KERNELS[name], levels, i, ETAS[name])
    closed = -a_next * float(levels.s[i]) + c * float(levels.a[i])
    assert float(gradient) == pytest.approx(closed, abs=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_l1_log_prob_is_that_of_torch(reduction):
    mean, x = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    density = Normal(mean, 0.3).log_prob(x).flatten(1)
    expected = density.mean(1) if reduction == "mean" else density.sum(1)
    assert torch.allclose(Transition(mean, 0.3).log_prob(x, reduction=reduction), expected, rtol=1e-5, atol=1e-5)


def test_l2_and_l3_ratio_is_one_after_the_storage_round_trip_and_not_before():
    levels, i = double_shifted_grid(), 7
    x, v, noise = torch.randn(8, 4, 16, 16), torch.randn(8, 4, 16, 16), torch.randn(8, 4, 16, 16)
    step = kernels.transition(kernels.flow_sde, levels, i, x, v, eta=0.7)
    exact = step.sample(noise)
    stored = exact.to(torch.bfloat16).float()
    old, unrounded = step.log_prob(stored), step.log_prob(exact)
    again = kernels.transition(kernels.flow_sde, levels, i, x.clone(), v.clone(), eta=0.7).log_prob(stored)
    assert torch.equal((again - old).exp(), torch.ones(8))
    assert step.std <= 0.3
    assert float((again - unrounded).abs().max()) > 1e-5


def test_l4_kl_is_that_of_torch():
    a, b = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    expected = kl_divergence(Normal(a, 0.4), Normal(b, 0.4)).flatten(1).mean(1)
    assert torch.allclose(Transition(a, 0.4).kl(b), expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "spread"), [("none", 26.0), ("std", 8.4), ("std_over_dt", 1.25)])
def test_p6_step_weights_balance_the_gradient(name, spread):
    levels, sizes = double_shifted_grid(), []
    for i in range(9):
        a_next, c, std = kernels.coefficients(kernels.flow_sde, levels, i, 0.7)
        sensitivity = abs(-a_next * float(levels.s[i]) + c * float(levels.a[i]))
        sizes.append(sensitivity / std * kernels.step_weight(name, levels, i, std))
    assert max(sizes) / min(sizes) == pytest.approx(spread, rel=0.01)


def test_table_of_flow_sde_on_the_default_grid():
    levels = double_shifted_grid()
    expected = [0.7000, 0.7430, 0.5362, 0.4459, 0.3918, 0.3528, 0.3191, 0.2820, 0.2254, 0.0063]
    stds = [kernels.coefficients(kernels.flow_sde, levels, i, 0.7)[2] for i in range(10)]
    assert stds == pytest.approx(expected, abs=1e-4)


def test_truncated_noise_keeps_the_diffusion_consistent():
    levels = double_shifted_grid()
    _, c, std = kernels.coefficients(kernels.flow_sde, levels, 0, 1.0, max_std=0.45)
    h = float(levels.s[0] - levels.s[1])
    assert std == pytest.approx(0.45)
    assert c == pytest.approx(float(levels.s[1]) - 0.45**2 / h * h / 2)


def test_kernels_on_a_vp_path_scale_with_the_state():
    flow = flow_levels([0.7, 0.4, 0.0])
    scale = torch.tensor([1.3, 1.1, 1.0], dtype=torch.float64)
    vp = Levels(flow.a * scale, flow.s * scale, flow.timesteps, "epsilon")
    for name in KERNELS:
        a_flow, c_flow, std_flow = kernels.coefficients(KERNELS[name], flow, 0, ETAS[name])
        assert kernels.coefficients(KERNELS[name], vp, 0, ETAS[name]) == pytest.approx(
            (1.1 * a_flow, 1.1 * c_flow, 1.1 * std_flow)
        )


def test_clip_in_nats():
    assert kernels.clip_in_nats(1e-4, 65_536, "mean") == pytest.approx(6.5536)
    assert kernels.clip_in_nats(1e-4, 65_536, "sum") == 1e-4


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="choose mean or sum"):
        Transition(torch.zeros(1, 1), 1.0).log_prob(torch.zeros(1, 1), reduction="median")
    with pytest.raises(InputError, match="std_over_dt"):
        kernels.step_weight("dt", shifted_grid(4), 0, 0.1)
