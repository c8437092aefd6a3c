"""Pixel statistics on pictures whose answer is known, and each alarm on a series that must and one that must not."""

import json
import math

import pytest
import torch

from visalign.config import MonitorConfig
from visalign.monitor import ALARMS, Alarm, Monitor, group_diversity, pixel_statistics
from visalign.types import InputError, Media


def soft_images(count, side=64, seed=0):
    """Smooth random colour fields: what a natural image's low frequencies look like."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True).clamp(0, 1)


def statistics(images):
    return {k: float(v.mean()) for k, v in pixel_statistics(Media.of_images(images)).items()}


def test_dark_share_counts_pixels():
    images = torch.ones(1, 3, 20, 20)
    images[:, :, :5] = 0.0
    assert statistics(images)["dark"] == 0.25


def test_saturation_of_pure_red_and_of_grey():
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1.0
    assert statistics(red)["saturation"] == 1.0
    assert statistics(torch.full((1, 3, 8, 8), 0.4))["saturation"] == 0.0


def test_high_frequency_share_of_a_wave_is_all_or_nothing():
    x = torch.arange(64.0)
    slow = 0.5 + 0.3 * torch.sin(2 * math.pi * x / 32).expand(1, 3, 64, 64)
    fast = 0.5 + 0.3 * torch.cos(math.pi * x).expand(1, 3, 64, 64)
    assert statistics(slow)["high_frequency"] == pytest.approx(0.0, abs=1e-5)
    assert statistics(fast)["high_frequency"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("period", [2, 4, 8, 16])
@pytest.mark.parametrize("side", [40, 64])
@pytest.mark.parametrize("direction", ["columns", "rows", "checks"])
def test_a_faint_grid_stands_out_at_its_period(period, side, direction):
    images = 0.2 + 0.6 * soft_images(8, side)
    wave = 0.06 * torch.cos(2 * math.pi * torch.arange(float(side)) / period)
    grid = {"columns": wave.expand(side, side), "rows": wave[:, None].expand(side, side)}
    grid["checks"] = (wave[:, None] * wave) / 0.06
    clean, dirty = statistics(images)["grid"], statistics(images + grid[direction])["grid"]
    assert clean < 0.1
    assert dirty > clean + 0.08


def test_a_wave_between_the_periods_is_no_grid():
    wave = 0.5 + 0.2 * torch.cos(2 * math.pi * 5 * torch.arange(64.0) / 64).expand(1, 3, 64, 64)
    assert statistics(wave)["grid"] < 1e-3


def test_statistics_of_a_video_are_the_mean_over_its_frames_and_sizes_may_be_small():
    frames = torch.rand(2, 3, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    video = pixel_statistics(Media(frames, fps=8))
    single = [pixel_statistics(Media(frames[:, i : i + 1])) for i in range(3)]
    for name, value in video.items():
        assert value.shape == (2,)
        assert torch.allclose(value, torch.stack([s[name] for s in single]).mean(0), atol=1e-6)


def test_diversity_sees_members_of_a_group_only():
    images = torch.stack([torch.zeros(3, 40, 40), torch.full((3, 40, 40), 0.2), torch.ones(3, 40, 40)])
    media = Media.of_images(images)
    assert group_diversity(media, torch.tensor([5, 5, 9])) == pytest.approx(0.2)
    assert group_diversity(media, torch.tensor([5, 9, 5])) == pytest.approx(1.0)
    assert group_diversity(media, torch.tensor([1, 2, 3])) == 0.0


def train(iteration, **values):
    return {"kind": "train", "iteration": iteration, "reward/shapes": 0.5} | {
        k.replace("__", "/"): v for k, v in values.items()
    }


def evaluation(iteration, shapes, clip):
    ends = {"eval/shapes/ci": [0.0, 1.0], "eval/clip/ci": [0.0, 1.0], "eval/clip/counting": 0.0}
    return {"kind": "eval", "iteration": iteration, "eval/shapes": shapes, "eval/clip": clip} | ends


def series(name, values):
    return [train(i, **{name: v}) for i, v in enumerate(values)]


CASES = {
    "held_out_drop": (
        [evaluation(0, 0.4, 0.30), train(1), evaluation(10, 0.5, 0.32), evaluation(20, 0.7, 0.20)],
        [evaluation(0, 0.4, 0.30), train(1), evaluation(10, 0.5, 0.32), evaluation(20, 0.7, 0.29)],
    ),
    "diversity": (series("diversity", [0.2, 0.15, 0.05]), series("diversity", [0.2, 0.15, 0.07])),
    "reward_std": (series("reward_std", [0.3, 0.1, 0.001]), series("reward_std", [0.3, 0.1, 0.01])),
    "zero_std": (series("zero_std_ratio", [0.1, 0.95]), series("zero_std_ratio", [0.1, 0.9])),
    "pixels": (series("pixels__dark", [0.45, 0.5, 0.93]), series("pixels__dark", [0.45, 0.5, 0.58])),
    "kl": (series("kl", [0.0, 0.4]), series("kl", [0.0, 0.2])),
    "clip_fraction": (series("clip_fraction", [0.1, 0.8]), series("clip_fraction", [0.1, 0.4])),
}


def alarms(rows, config=MonitorConfig(max_kl=0.3)):
    monitor = Monitor(config)
    return [a for row in rows for a in monitor.observe(row)]


def test_every_alarm_has_a_case():
    assert set(CASES) == set(ALARMS)


@pytest.mark.parametrize("name", CASES)
def test_alarm_is_raised(name):
    rows = CASES[name][0]
    (alarm,) = alarms(rows)
    assert (alarm.name, alarm.iteration) == (name, rows[-1]["iteration"])
    assert alarm.row() == {"kind": "alarm", "iteration": alarm.iteration, "name": name, "message": alarm.message}


@pytest.mark.parametrize("name", CASES)
def test_alarm_is_not_raised(name):
    assert alarms(CASES[name][1]) == []


def test_a_trained_reward_that_falls_is_no_held_out_drop():
    rows = [evaluation(0, 0.6, 0.3), train(1), evaluation(10, 0.4, 0.5)]
    assert alarms(rows) == []


def test_a_held_out_reward_that_falls_together_with_the_trained_is_no_hacking():
    rows = [evaluation(0, 0.6, 0.5), train(1), evaluation(10, 0.4, 0.2)]
    assert alarms(rows) == []


def test_evaluations_of_other_prompts_are_not_compared():
    rows = [evaluation(0, 0.4, 0.5), train(1), evaluation(10, 0.6, 0.3) | {"prompts": 60}]
    assert alarms(rows) == []
    rows += [evaluation(20, 0.7, 0.2) | {"prompts": 60}]
    assert [a.name for a in alarms(rows)] == ["held_out_drop"]


def test_without_a_limit_there_is_no_kl_alarm():
    assert alarms(CASES["kl"][0], MonitorConfig()) == []


def test_every_pixel_statistic_is_watched():
    for name in pixel_statistics(Media.of_images(torch.rand(1, 3, 16, 16))):
        (alarm,) = alarms(series(f"pixels__{name}", [0.1, 0.4]))
        assert name in alarm.message


def test_an_alarm_is_raised_once_until_it_went_away():
    rows = series("zero_std_ratio", [0.95, 0.99, 0.1, 0.95])
    assert [a.iteration for a in alarms(rows)] == [0, 3]


def test_an_evaluation_does_not_silence_a_train_alarm():
    rows = [train(0, kl=0.4), evaluation(0, 0.5, 0.5), train(1, kl=0.4)]
    assert [a.iteration for a in alarms(rows)] == [0]


def test_rows_of_another_kind_pass():
    assert alarms([{"kind": "alarm", "iteration": 3, "name": "kl", "message": ""}]) == []


@pytest.mark.parametrize("name", CASES)
def test_resume_is_exact_at_every_row(name):
    rows, config = CASES[name][0], MonitorConfig(max_kl=0.3)
    for cut in range(len(rows) + 1):
        first, second = Monitor(config), Monitor(config)
        found = [a for row in rows[:cut] for a in first.observe(row)]
        second.restore(json.loads(json.dumps(first.state())))
        found += [a for row in rows[cut:] for a in second.observe(row)]
        assert found == alarms(rows, config)


def test_stop_on_names_alarms():
    monitor = Monitor(MonitorConfig(stop_on=["kl"]))
    assert monitor.stops([Alarm("kl", "", 0)])
    assert not monitor.stops([Alarm("pixels", "", 0)])
    with pytest.raises(InputError, match=r"unknown alarm 'pixel'\. Did you mean 'pixels'\?"):
        Monitor(MonitorConfig(stop_on=["pixel"]))
