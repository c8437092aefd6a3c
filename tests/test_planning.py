"""The plan against what training then does, sizes against real modules, and a plan of every shipped config."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from visalign import kernels, load_pipeline, lora
from visalign.config import LoraConfig, dump_yaml, load_config
from visalign.measuring import clock
from visalign.planning import describe, plan
from visalign.planning_text import amount
from visalign.policy import Policy
from visalign.shapes.pairs import make_truth
from visalign.sizing import build, measure_sizes, model_folder
from visalign.training import train
from visalign.types import InputError

SHIPPED = sorted(p for p in Path("configs").rglob("*.yaml") if not {"models", "judges"} & set(p.parts))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Captioned pictures and preference pairs."""
    folder = tmp_path_factory.mktemp("given")
    make_truth(folder / "truth", 70, 32)
    files = sorted(p.name for p in (folder / "truth").glob("*.png"))
    lines = [json.dumps({"prompt": "a star", "chosen": a, "rejected": b}) for a, b in zip(files[::2], files[1::2])]
    (folder / "truth" / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return {"sft": folder / "truth", "dpo": folder / "truth" / "pairs.jsonl"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_config_has_a_plan(path, tiny_model, given):
    folder, call = tiny_model
    config = load_config(path, [f"model.name={folder}", f"model.call={json.dumps(call)}"])
    if config.data is not None:
        config = config.model_copy(update={"data": str(given[config.method.name])})
    found = plan(config)
    text = describe(found)
    assert found.layout.total == found.layout.group_size * config.train.prompts_per_iteration
    assert {"method", "iteration", "denoising", "σ grid", "trained", "memory", "model calls"} <= set(text)
    assert ("clip" in text) == (config.method.name == "grpo")


@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ({"name": "grpo", "beta": 0.1}, {"rollout": {"num_steps": 4, "kernel": "flow_sde", "window": {"size": 2}}}),
        ({"name": "nft", "times": 2}, {"rollout": {"num_steps": 4, "policy": "old"}}),
    ],
    ids=["grpo", "nft"],
)
def test_the_plan_says_what_training_counts(method, sections, small_config):
    config = small_config(method, train={"iterations": 1}, **sections)
    expected = plan(config)
    summary = train(config).summary
    assert summary["reward_calls"] == expected.reward_calls
    assert summary["model_calls"] == expected.model_calls


def test_calls_are_counted_by_hand(small_config):
    grpo = plan(small_config({"name": "grpo", "beta": 0.1}, rollout={"num_steps": 4, "kernel": "cps"}))
    # 8 rows: 4 sampled steps, 3 stochastic ones trained, and the reference at the same 3.
    assert (grpo.model_calls, grpo.reward_calls, grpo.trained) == (8 * (4 + 2 * 3), 8, 3)
    nft = plan(small_config({"name": "nft", "times": 2}))
    assert nft.model_calls == 8 * (4 + 2 * 3)  # current, old and reference at two levels


def test_clip_in_nats(small_config):
    plain = plan(small_config({"name": "grpo", "clip": 1e-3}))
    elements = plain.measured.elements
    assert plain.clip_nats == pytest.approx((1e-3 * elements, 1e-3 * elements))
    config = small_config(
        {"name": "grpo", "clip": 1e-3, "temper": True}, rollout={"num_steps": 4, "kernel": "cps", "eta": 0.8}
    )
    tempered = plan(config)
    stds = [kernels.coefficients(kernels.cps, tempered.measured.levels, k, 0.8)[2] for k in tempered.stochastic]
    expected = [1e-3 * elements / (2 * s**2) for s in (max(stds), min(stds))]
    assert tempered.clip_nats == pytest.approx(expected)


def test_sizes_equal_the_real_modules(tiny_model):
    folder, _ = tiny_model
    sizes = measure_sizes(folder, LoraConfig(rank=3))
    pipe = DiffusionPipeline.from_pretrained(folder)
    for name, count in sizes.components.items():
        assert count == sum(p.numel() for p in getattr(pipe, name).parameters()), name
    pipeline = load_pipeline(str(folder))
    policy = Policy(pipeline.denoisers, LoraConfig(rank=3), pipeline.family.lora_targets, 0)
    assert sizes.lora == policy.num_parameters()
    assert sizes.denoisers == ("transformer",)


def test_sizing_allocates_nothing(tiny_model):
    module = build(tiny_model[0] / "transformer", "diffusers", "SD3Transformer2DModel")
    assert all(p.device.type == "meta" for p in module.parameters())


def test_memory_adds_up(small_config):
    found = plan(small_config("nft", model={"name": small_config().model.name, "dtype": "bfloat16"}))
    assert found.memory["frozen model"] == pytest.approx(2e-9 * found.sizes.total)
    assert found.memory["optimiser"] == pytest.approx(8e-9 * found.sizes.lora)
    assert found.memory["snapshots"] == pytest.approx(8e-9 * found.sizes.lora)  # EMA and old


def test_a_model_that_was_never_fetched_cannot_be_sized(small_config):
    found = plan(small_config(model={"name": "owner/never-fetched"}))
    assert model_folder("owner/never-fetched") is None
    assert found.sizes is None
    assert "cannot be sized offline" in describe(found)["not known"]
    assert "time" not in describe(found)


def test_measuring_gives_times(small_config):
    found = plan(small_config("nft"), measure=True)
    assert found.measured.times.train > 0
    assert found.seconds > 0
    assert "s an iteration" in describe(found)["time"]


def test_a_config_that_could_not_learn_is_refused(small_config):
    with pytest.raises(InputError, match="group_size"):
        plan(small_config(train={"group_size": 1}))
    with pytest.raises(InputError, match="does not fit"):
        plan(small_config(rollout={"num_steps": 4, "kernel": "cps", "window": {"size": 9}}))


def test_nothing_is_written(small_config):
    config = small_config()
    plan(config)
    assert not Path(config.output).exists()
    assert load_config({"method": {"name": "nft"}}).output in dump_yaml(load_config({"method": {"name": "nft"}}))


def test_amounts_and_clocks():
    assert amount(0.0123) == "12.3 MB"
    assert clock(lambda: torch.zeros(1)) >= 0
    assert lora.FILE.endswith(".safetensors")
