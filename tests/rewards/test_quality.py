"""Rewards that need no model: known noise, known patterns, known colours."""

import importlib.util
import math

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from tests.rewards.tiny_vision import media, prompts
from visalign.rewards.check import check_reward
from visalign.rewards.colourfulness import Colourfulness, colourfulness
from visalign.rewards.niqe import Niqe
from visalign.rewards.psnr import PSNR, psnr
from visalign.rewards.sharpness import Sharpness, laplacian_variance
from visalign.rewards.ssim import SSIM, ssim
from visalign.types import InputError, Media, Prompts


def grey(pattern):
    return pattern.expand(1, 3, *pattern.shape[-2:])


@pytest.mark.parametrize("error", [0.5, 0.1, 0.01])
def test_psnr_of_a_constant_error_is_minus_20_decades(error):
    images = torch.full((2, 3, 8, 8), 0.5)
    assert torch.allclose(psnr(images, images - error), torch.full((2,), -20 * math.log10(error)), atol=1e-3)


def test_psnr_of_gaussian_noise_follows_its_deviation():
    noise = 0.05 * torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert float(psnr(0.5 + noise, torch.full_like(noise, 0.5))) == pytest.approx(-20 * math.log10(0.05), abs=0.05)


def test_psnr_is_torchmetrics_number_a_row():
    images, others = media(3, 16).images, media(3, 16, seed=1).images
    known = peak_signal_noise_ratio(images, others, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(psnr(images, others), known, atol=1e-4)


def test_psnr_of_equal_pictures_is_the_cap_with_a_gradient_of_zero():
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    value = psnr(images, images.detach(), cap=40)
    (gradient,) = torch.autograd.grad(value.sum(), images)
    assert value.tolist() == [40.0]
    assert float(gradient.abs().max()) == 0


def test_ssim_of_equal_pictures_is_1_and_falls_with_noise():
    images = media(1, 32).images
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    values = [float(ssim(images, images + s * noise)) for s in (0.0, 0.05, 0.3)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values == sorted(values, reverse=True)


def test_ssim_of_flat_pictures_is_its_luminance_term():
    one, other = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.8)
    known = (2 * 0.2 * 0.8 + 0.01**2) / (0.2**2 + 0.8**2 + 0.01**2)
    assert float(ssim(one, other)) == pytest.approx(known, abs=1e-3)


def test_ssim_does_not_guess_the_range_from_the_batch():
    dim = 0.1 * media(1, 32).images
    bright = media(1, 32, seed=2).images
    alone = ssim(dim, dim.flip(3))
    together = ssim(torch.cat([dim, bright]), torch.cat([dim.flip(3), bright.flip(3)]))
    assert torch.allclose(alone, together[:1])


def test_laplacian_of_a_wave_is_scaled_by_its_eigenvalue():
    step = math.tau / 8
    wave = grey(0.5 + 0.25 * torch.cos(step * torch.arange(66.0)).expand(10, -1))
    eigenvalue = 2 * math.cos(step) - 2
    assert float(laplacian_variance(wave)) == pytest.approx((255 * 0.25 * eigenvalue) ** 2 / 2, rel=1e-3)


def test_laplacian_of_a_checkerboard_is_four_contrasts():
    rows = torch.arange(12)
    board = grey(((rows[:, None] + rows) % 2).float() * 0.1)
    assert float(laplacian_variance(board)) == pytest.approx((4 * 25.5) ** 2, rel=1e-3)


def test_a_ramp_and_a_flat_picture_are_not_sharp():
    ramp = grey(torch.linspace(0, 1, 16).expand(16, -1))
    values = Sharpness().score(Media.of_images(torch.cat([ramp, torch.full_like(ramp, 0.3)])), prompts({}, {})).values
    assert values.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_noise_is_capped_at_1():
    assert Sharpness(cap=100).score(media(1), prompts({})).values.tolist() == [1.0]


def test_colourfulness_of_grey_is_0_with_a_finite_gradient():
    images = torch.rand(1, 1, 8, 8).expand(1, 3, 8, 8).clone().requires_grad_()
    value = colourfulness(images)
    (gradient,) = torch.autograd.grad(value.sum(), images)
    assert float(value.detach()) == pytest.approx(0, abs=1e-4)
    assert bool(gradient.isfinite().all())


def test_colourfulness_of_one_colour_is_its_mean_term():
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1
    assert float(colourfulness(red)) == pytest.approx(0.3 * math.hypot(255, 127.5), rel=1e-5)


def test_colourfulness_is_the_formula_of_the_paper():
    images = media(3, 16).images
    red, green, blue = (255 * images).double().unbind(1)
    first, second = (red - green).flatten(1), ((red + green) / 2 - blue).flatten(1)
    spread = (first.var(1, correction=0) + second.var(1, correction=0)).sqrt()
    known = spread + 0.3 * (first.mean(1) ** 2 + second.mean(1) ** 2).sqrt()
    assert torch.allclose(colourfulness(images).double(), known, rtol=1e-5)


@pytest.mark.parametrize("reward", [Sharpness(cap=1e6), Colourfulness()], ids=["sharpness", "colourfulness"])
def test_contract(reward):
    check_reward(reward, media(3), prompts({}, {}, {}))


@pytest.mark.parametrize("make", [PSNR, SSIM], ids=["psnr", "ssim"])
def test_contract_with_references(make):
    row = {"reference": media(1, seed=3).images[0]}
    check_reward(make(), media(3), prompts(row, row, {"reference": media(1, seed=4).images[0]}))


@pytest.mark.parametrize("make", [lambda: Sharpness(cap=0), lambda: PSNR(cap=-1), lambda: Niqe("musiq")])
def test_wrong_settings_are_refused(make):
    with pytest.raises(InputError, match="takes"):
        make()


@pytest.mark.skipif(importlib.util.find_spec("pyiqa") is not None, reason="pyiqa is installed")
def test_niqe_names_the_extra_that_it_needs():
    with pytest.raises(InputError, match=r"visalign\[iqa\]"):
        Niqe()


def test_niqe_is_minus_pyiqas_number():
    pyiqa = pytest.importorskip("pyiqa")
    pictures = media(2, 192)
    scores = Niqe("piqe").score(pictures, Prompts(("a", "b")))
    assert torch.allclose(scores.values, -pyiqa.create_metric("piqe", device="cpu")(pictures.images).flatten())
