"""Levels of schedulers that are no DDIM or Euler, and which of them can be stepped again."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from visalign.pipelines.schedule import replayable, tapped, why_not_replayable
from visalign.process import add_noise, read_levels, target, x0_eps


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_levels_of_dpm_explain_its_first_order_step(prediction):
    scheduler = DPMSolverMultistepScheduler(solver_order=1, prediction_type=prediction, beta_schedule="scaled_linear")
    scheduler.set_timesteps(7)
    levels = read_levels(scheduler)
    x = torch.randn(2, 3, 4, 4)
    for i, t in enumerate(scheduler.timesteps):
        output = torch.randn(2, 3, 4, 4)
        x0, eps = x0_eps(x, output, levels.a[i], levels.s[i], levels.prediction)
        expected = add_noise(x0, eps, levels.a[i + 1], levels.s[i + 1])
        x = scheduler.step(output, t, x, return_dict=False)[0]
        assert torch.allclose(expected, x, atol=1e-3)


def test_lcm_ends_clean():
    scheduler = LCMScheduler(beta_schedule="scaled_linear")
    scheduler.set_timesteps(4)
    levels = read_levels(scheduler)
    assert levels.a[-1] == 1
    assert levels.s[-1] == 0


def test_inverted_sigmas_are_levels_of_signal():
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(5)
    levels = read_levels(scheduler)
    assert levels.s[-1] == 0
    assert (levels.s[1:] < levels.s[:-1]).all()
    x0, eps = torch.randn(2, 3), torch.randn(2, 3)
    a, s = levels.a[2], levels.s[2]
    output = target(x0, eps, a, s, levels.prediction)
    found = x0_eps(add_noise(x0, eps, a, s), output, a, s, levels.prediction)
    assert torch.allclose(found[0], x0, atol=1e-5)
    assert torch.allclose(found[1], eps, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (PNDMScheduler, "multistep"),
        (UniPCMultistepScheduler, "multistep"),
        (HeunDiscreteScheduler, "2 times a step"),
        (DDPMScheduler, "adds noise"),
        (EulerAncestralDiscreteScheduler, "adds noise"),
        (LCMScheduler, "adds noise"),
        (DDIMScheduler, ""),
        (EulerDiscreteScheduler, ""),
    ],
)
def test_reasons_and_replacements(kind, reason):
    scheduler = kind()
    assert reason in why_not_replayable(scheduler)
    assert bool(reason) == bool(why_not_replayable(scheduler))
    assert not why_not_replayable(replayable(scheduler))


def test_stochastic_flow_sampling_is_noticed():
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True, shift=3.0)
    assert "adds noise" in why_not_replayable(scheduler)
    assert replayable(scheduler).config.shift == 3.0
    assert not why_not_replayable(replayable(scheduler))


def test_a_tapped_class_keeps_its_name_and_is_made_once():
    kind = tapped(DDIMScheduler)
    assert issubclass(kind, DDIMScheduler)
    assert kind.__name__ == "DDIMScheduler"
    assert tapped(DDIMScheduler) is tapped(kind) is kind
