"""GRPO's parts against closed forms: P3, P4 and the KL units."""

import pytest
import torch

from visalign.kernels import Transition, clip_in_nats
from visalign.methods.base import ReverseView
from visalign.methods.grpo import GRPO, GRPOConfig, clipped
from visalign.types import Step

B, SHAPE, STD, DT = 6, (2, 3, 3), 0.3, 0.1


def make_view(
    mean, old_mean, *, ref_mean=None, noise=None, advantages=None, weight=1.0, temper=False, reduction="mean"
):
    noise = torch.randn(B, *SHAPE) if noise is None else noise
    x_next = old_mean + STD * noise
    old = Transition(old_mean, STD).log_prob(x_next, temper=temper, reduction=reduction)
    step = Step(0, torch.zeros(B, *SHAPE), x_next, torch.zeros(B, *SHAPE), old, old_mean)
    ref = torch.zeros_like(old_mean) if ref_mean is None else ref_mean
    advantages = torch.randn(B) if advantages is None else advantages
    return ReverseView(
        step, Transition(mean, STD), {"reference": Transition(ref, STD)}, mean, {"reference": ref},
        advantages, torch.arange(B) // 2, weight, DT,
    )  # fmt: skip


def test_on_policy_ratio_is_exactly_one():
    mean = torch.randn(B, *SHAPE)
    loss = GRPO(GRPOConfig()).loss(make_view(mean, mean.clone()))
    assert torch.equal(loss.metrics["ratio"], torch.ones(B))
    assert float(loss.metrics["clip_fraction"].max()) == 0


def test_p3_gradient_at_ratio_one_is_reinforce():
    old = torch.randn(B, *SHAPE)
    mean = old.clone().requires_grad_()
    view = make_view(mean, old)
    GRPO(GRPOConfig()).loss(view).rows.sum().backward()
    ppo = mean.grad.clone()
    mean.grad = None
    (-view.advantages * view.transition.log_prob(view.step.x_next)).sum().backward()
    assert torch.equal(ppo, mean.grad)


def test_gradient_against_finite_differences():
    old = torch.randn(B, *SHAPE, dtype=torch.float64)
    direction = torch.randn(B, *SHAPE, dtype=torch.float64)
    noise, advantages = torch.randn(B, *SHAPE, dtype=torch.float64), torch.randn(B, dtype=torch.float64)
    method = GRPO(GRPOConfig(clip=10.0, beta=0.5))

    def value(t):
        return method.loss(make_view(old + t * direction, old, noise=noise, advantages=advantages)).rows.sum()

    t = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(t), t)
    h = 1e-4
    assert float(gradient) == pytest.approx(float((value(t + h) - value(t - h)) / (2 * h)), rel=1e-3)


def test_p4_normalised_ratio_is_the_mean_of_noise_times_shift():
    old, noise = torch.randn(B, *SHAPE), torch.randn(B, *SHAPE)
    mean = old + 0.01 * torch.randn(B, *SHAPE)
    loss = GRPO(GRPOConfig(ratio="normalised")).loss(make_view(mean, old, noise=noise))
    expected = (noise * (mean - old)).flatten(1).mean(1)
    assert torch.allclose(loss.metrics["ratio"].log(), expected, atol=1e-6)


def test_p4_on_policy_gradient_is_std_times_ppo():
    old, noise, advantages = torch.randn(B, *SHAPE), torch.randn(B, *SHAPE), torch.randn(B)
    gradients = []
    for ratio in ("plain", "normalised"):
        mean = old.clone().requires_grad_()
        view = make_view(mean, old, noise=noise, advantages=advantages)
        GRPO(GRPOConfig(ratio=ratio, clip=1.0)).loss(view).rows.sum().backward()
        gradients.append(mean.grad)
    assert torch.allclose(gradients[1], STD * gradients[0], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("unit", "factor"), [("true", 1 / (2 * STD**2)), ("legacy_std", DT / (2 * STD**2)), ("x_mse", 1.0), ("v_mse", 1.0)]
)
def test_kl_units_and_their_gradient(unit, factor):
    old = torch.randn(B, *SHAPE)
    mean = (old + 0.1).requires_grad_()
    loss = GRPO(GRPOConfig(beta=1.0, kl=unit)).loss(make_view(mean, old, ref_mean=old))
    assert torch.allclose(loss.metrics["kl"], torch.full((B,), 0.01 * factor), rtol=1e-4)
    (gradient,) = torch.autograd.grad((loss.rows - clipped(loss.metrics["ratio"], torch.zeros(B), 1.0)).sum(), mean)
    assert float(gradient.abs().max()) > 0


def test_pessimism_clips_only_further_moves():
    ratio = torch.tensor([1.2, 0.8, 1.2, 0.8])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert clipped(ratio, advantages, 0.1).tolist() == pytest.approx([-1.1, -0.8, 1.2, 0.9])


def test_tempered_ratio_is_the_plain_one_scaled():
    old, noise, advantages = torch.randn(B, *SHAPE), torch.randn(B, *SHAPE), torch.randn(B)
    mean = old + 0.02
    plain = GRPO(GRPOConfig()).loss(make_view(mean, old, noise=noise, advantages=advantages))
    tempered = GRPO(GRPOConfig(temper=True)).loss(make_view(mean, old, noise=noise, advantages=advantages, temper=True))
    log_plain, log_tempered = plain.metrics["ratio"].log(), tempered.metrics["ratio"].log()
    assert torch.allclose(log_tempered, 2 * STD**2 * log_plain, atol=1e-5)


def test_clip_in_nats_names_the_hidden_factor():
    assert clip_in_nats(1e-5, 65_536, "mean") == pytest.approx(0.65536)


def test_p5_dppo_drops_only_what_moves_further_away():
    """Every corrective row is kept; of those far away, the ones that would go further are not."""
    old, noise = torch.randn(B, *SHAPE), torch.randn(B, *SHAPE)
    shift = torch.tensor([1.0, -1.0, 1.0, -1.0, 1e-6, 1e-6]).view(B, 1, 1, 1)
    mean = (old + 0.1 * shift * noise).requires_grad_()  # ratio > 1 where the shift is positive
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])
    view = make_view(mean, old, noise=noise, advantages=advantages)
    loss = GRPO(GRPOConfig(objective="dppo", tau=1e-5)).loss(view)
    kept = torch.tensor([False, True, True, False, True, True])  # far and away; corrective ×2; far and away; near ×2
    expected = torch.where(kept, -advantages * loss.metrics["ratio"], 0.0)
    assert torch.allclose(loss.rows, expected)


def test_p5_an_empty_mask_is_the_plain_surrogate():
    old = torch.randn(B, *SHAPE)
    view = make_view(old + 0.1 * torch.randn(B, *SHAPE), old)
    loss = GRPO(GRPOConfig(objective="dppo", tau=1e9)).loss(view)
    assert torch.equal(loss.rows, -view.advantages * loss.metrics["ratio"])
