"""What a training shows: a moving line on a terminal, a line an iteration elsewhere; only the same prompts compare."""

from io import StringIO

import pytest
from rich.console import Console

from tests.synthetic_run import CONFIG
from visalign.config import load_config
from visalign.progress import TrainProgress

TRAIN = {
    "kind": "train",
    "iteration": 6,
    "reward": 0.5,
    "images_per_s": 26.0,
    "peak_memory_gb": 1.25,
    "time/total": 60.0,
}


def evaluation(iteration, value, prompts=150):
    row = {"kind": "eval", "iteration": iteration, "prompts": prompts, "eval/r": value}
    return row | {"eval/r/ci": [value - 0.1, value + 0.1], "eval/r/counting": 0.0}


def show(*rows, terminal=False, **changes):
    config = load_config(CONFIG, [f"train.{k}={v}" for k, v in changes.items()])
    console = Console(file=StringIO(), force_terminal=terminal, width=200, color_system=None)
    with TrainProgress(console, config) as progress:
        for row in rows:
            progress(row)
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_line_has_reward_speed_time_left_and_memory(terminal):
    shown = show(TRAIN, terminal=terminal)
    for text in ("iteration 6/60", "reward 0.500", "26.0 images/s", "9 min left", "1.2 GB"):
        assert text in shown


def test_time_left_knows_the_limit():
    assert "60 s left" in show(TRAIN, max_minutes=2)
    assert "0 s left" in show(TRAIN, max_minutes=1)


def test_methods_without_rewards_show_the_loss():
    assert "loss 0.25" in show({k: v for k, v in TRAIN.items() if k != "reward"} | {"loss": 0.25})


def test_evaluations_compare_the_same_prompts_only():
    shown = show(
        evaluation(0, 0.4), evaluation(10, 0.5, prompts=60), evaluation(20, 0.7, prompts=60), evaluation(30, 0.6)
    )
    lines = shown.splitlines()
    assert lines[0] == "held out at 0: r 0.400 [0.3, 0.5] on 150 prompts"
    assert lines[1].endswith("on 60 prompts")
    assert lines[2].endswith("on 60 prompts, +0.2 since 10")
    assert lines[3].endswith("on 150 prompts, +0.2 since 0")


def test_alarms_are_shown_and_other_rows_are_not():
    assert "alarm kl: far [away]" in show({"kind": "alarm", "iteration": 3, "name": "kl", "message": "far [away]"})
    assert show({"kind": "check", "iteration": 0, "replay_deviation": 0.0}) == ""
