"""Fixtures shared by all tests: no network, a tiny real pipeline in a folder, a small run's config."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from visalign.config import load_config

PROMPTS = ["a red circle", "two blue squares", "a green star", "three red circles"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A tiny SD3 pipeline with text encoders as an ordinary diffusers folder; returns (folder, call)."""
    from tests.tiny import build

    case = build("sd3_text")
    folder = tmp_path_factory.mktemp("model") / "sd3"
    case.pipe.save_pretrained(folder)
    return folder, case.call


@pytest.fixture
def small_config(tiny_model, tmp_path):
    """Makes configs of runs that take a second: small_config(method="grpo", **sections)."""
    folder, call = tiny_model
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))

    def make(method="grpo", out="run", **sections):
        values = {
            "model": {"name": str(folder), "call": call},
            "prompts": {"train": str(prompts), "held_out": str(prompts)},
            "rewards": {"jpeg_size": 1.0},
            "lora": {"rank": 4, "alpha": 8},
            "rollout": {"num_steps": 4, "kernel": "flow_sde"},
            "method": {"name": method} if isinstance(method, str) else method,
            "evaluation": {"every": 2, "images": 2},
            "output": str(tmp_path / out),
        }
        train = {"iterations": 2, "prompts_per_iteration": 2, "group_size": 4, "updates": 2, "micro_batch": 4}
        values["train"] = train | sections.pop("train", {}) | {"checkpoint_every": 1}
        return load_config(values | sections)

    return make
