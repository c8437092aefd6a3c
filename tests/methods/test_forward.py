"""The forward families against closed forms: NFT's expansion (B1), DPO's start and gradient, SFT, DRaFT-K."""

import math

import pytest
import torch

from visalign import process
from visalign.methods.base import ForwardView, pick_times
from visalign.methods.dpo import DPO, DPOConfig, pair_logits
from visalign.methods.draft import DRaFT, DRaFTConfig
from visalign.methods.nft import NFT, NFTConfig, implicit_policies, optimality
from visalign.methods.sft import SFT, SFTConfig
from visalign.types import InputError, Levels, Scores

B, SHAPE = 6, (2, 3, 3)
SIGMA = torch.tensor([1.0, 0.7, 0.3, 0.0], dtype=torch.float64)
FLOW = Levels(1 - SIGMA, SIGMA, 1000 * SIGMA[:-1], "flow")
VP = Levels((1 - SIGMA**2).sqrt(), SIGMA, 1000 * SIGMA[:-1], "epsilon")


def make_view(output, *, levels=FLOW, index=1, others=None, advantages=None, x0=None, eps=None):
    x0 = torch.randn(B, *SHAPE, dtype=output.dtype) if x0 is None else x0
    eps = torch.randn(B, *SHAPE, dtype=output.dtype) if eps is None else eps
    x = process.add_noise(x0, eps, levels.a[index], levels.s[index])
    advantages = torch.randn(B, dtype=output.dtype) if advantages is None else advantages
    return ForwardView(levels, index, x0, eps, x, output, others or {}, advantages, torch.arange(B) // 2)


def test_b1_nft_expansion_identity_without_the_adaptive_weight():
    output, old = torch.randn(B, *SHAPE), torch.randn(B, *SHAPE)
    config = NFTConfig(beta=0.7, kl=0.0, adaptive=False, advantage_max=1.0)
    view = make_view(output, others={"old": old})
    got = NFT(config).loss(view).rows
    sigma, r = float(FLOW.s[1]), optimality(view.advantages, 1.0)
    d, u = output - old, (view.eps - view.x0) - old
    mean = lambda t: t.flatten(1).mean(1)
    expected = 0.7 * mean(d * d) - 2 * (2 * r - 1) * mean(d * u) + mean(u * u) / 0.7
    assert torch.allclose(got, sigma**2 * expected, rtol=1e-4)


def test_b1_nft_gradient_at_the_old_policy_is_the_weighted_flow_matching_gradient():
    old = torch.randn(B, *SHAPE)
    output = old.clone().requires_grad_()
    view = make_view(output, others={"old": old})
    NFT(NFTConfig(kl=0.0, adaptive=False, advantage_max=1.0)).loss(view).rows.sum().backward()
    r, sigma = optimality(view.advantages, 1.0), float(FLOW.s[1])
    again = old.clone().requires_grad_()
    error = sigma**2 * (again - (view.eps - view.x0)).square().flatten(1).mean(1)
    ((2 * r - 1) * error).sum().backward()
    assert torch.allclose(output.grad, again.grad, atol=1e-6)


def test_b1_nft_minimiser():
    # E[(2r−1)u|x]/β + v_old, on a two-point posterior: targets 1 and 3 with r = 0.9 and 0.2, v_old = 0.5, β = 0.8.
    targets, r, old, beta = torch.tensor([1.0, 3.0]), torch.tensor([0.9, 0.2]), 0.5, 0.8
    v = torch.tensor(0.0, requires_grad=True)
    optimizer = torch.optim.LBFGS([v], max_iter=50, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        positive, negative = implicit_policies(v, torch.tensor(old), beta)
        loss = (r * (positive - targets) ** 2 + (1 - r) * (negative - targets) ** 2).mean() / beta
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(v) == pytest.approx(old + float(((2 * r - 1) * (targets - old)).mean()) / beta, abs=1e-5)


def test_nft_adaptive_weight_carries_no_gradient():
    old, output = torch.randn(B, *SHAPE), torch.randn(B, *SHAPE, requires_grad=True)
    view = make_view(output, others={"old": old}, advantages=torch.full((B,), 5.0))
    NFT(NFTConfig(kl=0.0)).loss(view).rows.sum().backward()
    clean = view.clean(output.detach())
    weight = (clean - view.x0).abs().flatten(1).mean(1)
    sigma, size = float(FLOW.s[1]), clean[0].numel()
    expected = 5.0 * 2 * (clean - view.x0) * -sigma / size / weight.view(-1, 1, 1, 1)
    assert torch.allclose(output.grad, expected, rtol=1e-3, atol=1e-6)


def test_s2_old_decay_schedules():
    assert NFT(NFTConfig(old_decay="copy")).old_decay(500) == 0
    ramp, late = NFT(NFTConfig(old_decay="ramp")), NFT(NFTConfig(old_decay="late_ramp"))
    assert ramp.old_decay(100) == pytest.approx(0.1)
    assert ramp.old_decay(600) == 0.5
    assert late.old_decay(75) == 0
    assert late.old_decay(209) == 0.999


@pytest.mark.parametrize("levels", [FLOW, VP], ids=["flow", "epsilon"])
def test_dpo_starts_at_log_two_with_the_known_gradient(levels):
    output = torch.randn(B, *SHAPE, requires_grad=True)
    view = make_view(output, levels=levels, others={"reference": output.detach().clone()})
    beta = 500.0
    loss = DPO(DPOConfig(beta=beta)).loss(view)
    assert loss.rows.tolist() == pytest.approx([math.log(2)] * B, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss.rows[0::2].sum(), output, retain_graph=True)
    errors = view.error(output)
    (expected,) = torch.autograd.grad(beta / 4 * (errors[0::2] - errors[1::2]).sum(), output)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_dpo_swapping_the_pair_flips_the_logit():
    delta = torch.randn(8)
    swapped = delta.view(-1, 2).flip(1).flatten()
    assert torch.equal(pair_logits(delta, 100.0), -pair_logits(swapped, 100.0))


def test_dpo_gradient_against_finite_differences():
    base, direction = torch.randn(B, *SHAPE, dtype=torch.float64), torch.randn(B, *SHAPE, dtype=torch.float64)
    x0, eps = torch.randn(B, *SHAPE, dtype=torch.float64), torch.randn(B, *SHAPE, dtype=torch.float64)
    method = DPO(DPOConfig(beta=3.0))

    def value(t):
        return (
            method.loss(make_view(base + t * direction, x0=x0, eps=eps, others={"reference": base})).rows.double().sum()
        )

    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(t), t)
    h = 2e-2
    assert float(gradient) == pytest.approx(float((value(t + h) - value(t - h)) / (2 * h)), rel=2e-2)


@pytest.mark.parametrize("levels", [FLOW, VP], ids=["flow", "epsilon"])
def test_sft_is_the_denoising_error(levels):
    x0, eps = torch.randn(B, *SHAPE), torch.randn(B, *SHAPE)
    goal = eps - x0 if levels is FLOW else eps
    view = make_view(goal + 0.5, levels=levels, x0=x0, eps=eps)
    assert SFT(SFTConfig()).loss(view).rows.tolist() == pytest.approx([0.25] * B, rel=1e-5)


def test_draft_pulls_until_the_margin():
    values = torch.tensor([0.2, 0.9, 0.5], requires_grad=True)
    scores = Scores(values, valid=torch.tensor([True, True, False]))
    DRaFT(DRaFTConfig(margin=0.8)).loss(scores).rows.sum().backward()
    assert values.grad.tolist() == [-1.0, 0.0, 0.0]


def test_draft_names_its_first_step():
    assert DRaFT(DRaFTConfig(last_steps=2)).grad_from(8, torch.Generator()) == 6
    with pytest.raises(InputError, match="last_steps"):
        DRaFT(DRaFTConfig(last_steps=9)).grad_from(8, torch.Generator())


def test_times_are_stratified_and_distinct():
    for seed in range(20):
        times = pick_times(5, 0, 50, torch.Generator().manual_seed(seed))
        assert [t // 10 for t in times] == [0, 1, 2, 3, 4]
    assert pick_times(4, 0, 4, torch.Generator()) == [0, 1, 2, 3]
    with pytest.raises(InputError, match="levels"):
        pick_times(5, 0, 4, torch.Generator())
