"""The loop on a tiny real pipeline: every family learns, resume is bit-exact, wrong input is refused early."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from visalign import checkpoint, learning, lora
from visalign.rewards.base import Reward, RewardSpec
from visalign.training import train
from visalign.types import InputError, Media, Prompts, RunError, Scores

TIMES = ("time/", "images_per_s", "peak_memory_gb")


class Brightness(Reward):
    """A differentiable reward for tests: the mean of the pixels."""

    spec = RewardSpec(name="brightness", differentiable=True, range=(0.0, 1.0))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        return Scores(media.pixels.flatten(1).mean(1))

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        return self.score(media, prompts)


def broken_nan(images, prompts):
    return [float("nan")] * len(images)


def broken_length(images, prompts):
    return [1.0]


def broken_raises(images, prompts):
    raise KeyError("no such judge")


def constant_reward(images, prompts):
    return [1.0] * len(images)


def rows(run, kind=None):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [r for r in found if kind is None or r["kind"] == kind]
    return [{k: v for k, v in r.items() if not k.startswith(TIMES)} for r in found]


@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ("grpo", {}),
        ({"name": "grpo", "beta": 0.04, "kl": "legacy_std", "ratio": "normalised", "step_weight": "inverse_dt"}, {}),
        ("nft", {"rollout": {"num_steps": 4, "policy": "old"}}),
        ("draft", {"rewards": {"tests.test_training:Brightness": 1.0}}),
    ],
    ids=["grpo", "guard", "nft", "draft"],
)
def test_each_online_family_trains_and_leaves_a_lora_that_loads(method, sections, small_config):
    result = train(small_config(method, **sections))
    assert (result.run / "report.html").exists()
    assert (result.run / "README.md").exists()
    assert {"base", "tuned", "delta", "delta_ci", "model_calls", "reward_calls", "seed"} <= result.summary.keys()
    tensors = load_file(result.lora_path / lora.FILE)
    assert any(float(v.abs().max()) > 0 for k, v in tensors.items() if ".lora_B." in k)
    assert len(rows(result.run, "train")) == 2
    assert [r["iteration"] for r in rows(result.run, "eval")] == [0, 2]


def test_rollout_and_replay_agree_to_the_bit(small_config):
    result = train(small_config("grpo"))
    (check,) = [r for r in rows(result.run, "check") if "replay_deviation" in r]
    assert check["replay_deviation"] == 0.0


class Killed(Exception):
    """Stands for a kill in the middle of an iteration."""


def run_until(config, iteration, **options):
    def stop(row):
        if row["kind"] == "train" and row["iteration"] == iteration:
            raise Killed

    with pytest.raises(Killed):
        train(config, progress=stop, **options)


@pytest.mark.parametrize("method", ["grpo", "nft"])
def test_two_kills_and_resumes_equal_one_straight_run(method, small_config):
    rollout = {"num_steps": 4, "kernel": "flow_sde", "policy": "old" if method == "nft" else "current"}
    sections = {"train": {"iterations": 6}, "rollout": rollout}
    straight = train(small_config(method, out="straight", **sections))
    config = small_config(method, out="killed", **sections)
    run_until(config, 3)
    run_until(config, 5, resume="latest")
    resumed = train(config, resume="latest")
    ours, theirs = (checkpoint.load(checkpoint.latest(r.run)) for r in (straight, resumed))
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(ours[0][k], theirs[0][k]) for k in ours[0])
    assert ours[1]["monitor"] == theirs[1]["monitor"]
    assert rows(straight.run) == rows(resumed.run)
    assert straight.summary["tuned"] == resumed.summary["tuned"]


def test_resume_refuses_another_config_and_lists_the_difference(small_config):
    run_until(small_config("grpo", train={"iterations": 4}), 2)
    changed = small_config("grpo", train={"iterations": 4}, optimizer={"lr": 0.01})
    with pytest.raises(InputError, match=r"optimizer\.lr: 0\.0003 → 0\.01"):
        train(changed, resume="latest")


def test_a_torn_checkpoint_is_refused(small_config):
    config = small_config("grpo", train={"iterations": 4})
    run_until(config, 3)
    torn = checkpoint.latest(__import__("pathlib").Path(config.output)) / "tensors.safetensors"
    torn.write_bytes(torn.read_bytes()[:200])
    with pytest.raises(InputError, match="not a whole checkpoint"):
        train(config, resume="latest")


def test_a_folder_with_a_run_is_not_overwritten(small_config):
    run_until(small_config("grpo", train={"iterations": 4}), 2)
    with pytest.raises(InputError, match="--resume"):
        train(small_config("grpo", train={"iterations": 4}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rollout": {"kernel": "ode"}}, "deterministic"),
        ({"rollout": {"kernel": "cps", "eta": 0.0}}, "deterministic"),
        ({"train": {"group_size": 1}}, "at least 2"),
        ({"rollout": {"kernel": "cps", "num_steps": 4, "window": {"size": 9}}}, "does not fit"),
        ({"train": {"updates": 100}}, "lower train.updates"),
    ],
)
def test_recipes_that_cannot_learn_are_refused(sections, message, small_config):
    with pytest.raises(InputError, match=message):
        train(small_config("grpo", **sections))


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("broken_nan", "NaN|nan"),
        ("broken_length", "1"),
        ("broken_raises", "no such judge"),
        ("constant_reward", "gradient"),
    ],
)
def test_rewards_that_fail_stop_the_run(reward, message, small_config):
    with pytest.raises(RunError, match=message):
        train(small_config("grpo", rewards={f"tests.test_training:{reward}": 1.0}))


def test_a_gradient_that_is_not_finite_stops_the_run(small_config, monkeypatch):
    from visalign.methods import grpo

    monkeypatch.setattr(grpo, "clipped", lambda ratio, advantages, clip: ratio * float("inf"))
    with pytest.raises(RunError, match="not finite"):
        train(small_config("grpo"))


def test_a_lora_without_effect_is_noticed(small_config, monkeypatch):
    folded = lora.folded
    monkeypatch.setattr(lora, "folded", lambda policy: {k: torch.zeros_like(v) for k, v in folded(policy).items()})
    with pytest.raises(RunError, match="no effect"):
        train(small_config("grpo", optimizer={"lr": 0.05}))


def test_averages_leave_out_what_could_not_be_judged():
    found = learning.averages({"a": [torch.tensor([1.0, 2.0]), torch.tensor(6.0)], "b": [torch.empty(0)]})
    assert found == {"a": 3.0}


def test_a_reward_that_judges_some_prompts_only_trains_by_gradient_and_is_drawn(small_config, tmp_path):
    """`palette` judges prompts that settle colours; the others are invalid and stand in no average."""
    rows = [
        {"prompt": "a red circle", "tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]},
        {"prompt": "a circle", "tag": "single_object", "include": [{"class": "circle", "count": 1}]},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = {"train": str(path), "held_out": str(path)}
    method = {"name": "draft", "last_steps": 1}
    result = train(small_config(method=method, rewards={"palette": 1.0}, prompts=prompts))
    lines = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    trained = [line["reward/palette"] for line in lines if line["kind"] == "train"]
    assert len(trained) == 2
    assert all(math.isfinite(value) for value in trained)
    assert result.report.is_file()
