"""The config of a run: one YAML file, `key=value` overrides, strict keys.

Sections live beside their owners where those may import pydantic (`rollout.RolloutConfig`, every method's `Config`);
the others stand here. YAML picks, code decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from visalign import registry
from visalign.rollout import RolloutConfig
from visalign.section import Section, parse
from visalign.shapes import SETTINGS
from visalign.types import InputError


class ModelConfig(Section):
    """The base model and how it runs."""

    name: str = "shapes/sd3"
    """A built-in model (`visalign list models`), a diffusers folder, or a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the frozen base; LoRA masters, latents, log-probs and scores stay float32."""
    device: str = "auto"
    attention: str = "auto"
    """`auto` (SDPA), `xformers`, or a diffusers backend by name."""
    compile: bool = False
    quantise: Literal["int8", "nf4"] | None = None
    offload: Literal["model", "sequential"] | None = None
    tiling: bool = False
    gradient_checkpointing: bool = False
    call: dict[str, Any] = {}
    """Fixed arguments of every pipeline call: height, width, num_frames, …; built-in models add their own."""

    @model_validator(mode="before")
    @classmethod
    def _built_in(cls, values: Any) -> Any:
        if not str(values.get("name", "shapes/sd3")).startswith("shapes/"):
            return values
        return values | {"call": SETTINGS["call"] | (values.get("call") or {})}


class LoraConfig(Section):
    """The trained adapter."""

    rank: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
    targets: list[str] | None = None
    """Module name endings; none means the family's attention projections."""
    init: str | None = None
    """Folder of a LoRA to start from; none starts at zero effect."""


class PromptsConfig(Section):
    """Where prompts come from: `shapes/train`, `shapes/held_out`, or a txt, jsonl, csv or parquet file."""

    train: str = "shapes/train"
    held_out: str = "shapes/held_out"


class RewardEntry(Section):
    """One reward and its weight."""

    weight: float = 1.0
    params: dict[str, Any] = {}
    """Keyword arguments of the reward."""
    lift: dict[str, Any] = {}
    """How an image reward judges video: options of `rewards.lifting.Lifted`, such as `{reduce: top}`."""


Rewards = dict[str, RewardEntry]


class AdvantageConfig(Section):
    """From rewards to advantages."""

    aggregate: str = "sum"
    """Several rewards → one, by a name of `aggregation.AGGREGATIONS`: `sum`, `group_z` (GDPO), `log_sigmoid`, …"""
    aggregate_options: dict[str, float | str] = {}
    """Keyword options of that function, for example `{by: artifact, minimum: 0.5}` of `gate`."""
    scale: Literal["group", "global", "max_group", "none"] = "global"
    """What centred rewards are divided by: the std of the group, of the batch, the largest group's, or nothing."""
    epsilon: float = Field(1e-4, gt=0)
    """Added to the std; 1e-8 turns tiny gaps into full advantages."""
    clip: float = Field(5.0, gt=0)
    """Advantages are clamped to ± this."""
    keep: int | None = Field(None, ge=2)
    """Train only the best and the worst half of this many rows of each group (DanceGRPO 8 of 24)."""
    credit: Literal["outcome"] = "outcome"
    """Which step earns which share of the reward."""


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    eps: float = 1e-8
    max_grad_norm: float = Field(1.0, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay to zero over the run, after the warm-up."""
    warmup: int = Field(0, ge=0)
    """Updates of linear warm-up."""


class EmaConfig(Section):
    """Exponential moving average of the adapter; evaluated and shipped."""

    decay: float = Field(0.9, ge=0, lt=1)
    """0 switches it off."""
    every: int = Field(1, ge=1)
    """Updates between two averagings."""


class TrainConfig(Section):
    """The shape of the loop."""

    iterations: int = Field(100, ge=1)
    """One iteration is one round of experience with its updates."""
    prompts_per_iteration: int = Field(8, ge=1)
    group_size: int = Field(16, ge=1)
    """Samples a prompt."""
    updates: int = Field(1, ge=1)
    """Optimiser steps an iteration; its rows are split between them."""
    micro_batch: int = Field(64, ge=1)
    """Rows in one forward pass, in rollout and in training alike; gradients accumulate over the rest."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop after the iteration in which this wall time has passed."""
    checkpoint_every: int = Field(10, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    trackers: list[str] = []
    """Trackers of accelerate by name (tensorboard, wandb, trackio); metrics.jsonl is always written."""


class EvaluationConfig(Section):
    """The same prompts and seeds at step 0 and every N iterations."""

    every: int = Field(10, ge=1)
    prompts: int | None = Field(None, ge=1)
    """How many of the held-out prompts in the loop's own evaluations; none means all. The last one takes all."""
    num_steps: int | None = Field(None, ge=1)
    """Denoising steps; none means those of the rollout."""
    images: int = Field(12, ge=1)
    """Samples shown in the report and written to samples/."""
    seed: int = 1234
    batch: int = Field(64, ge=1)


class MonitorConfig(Section):
    """Alarms of reward hacking and health, and which of them stop the run."""

    stop_on: list[str] = []
    """Names of alarms that end the run; the best held-out checkpoint is kept."""
    held_out_drop: float = 0.05
    """Alarm when a held-out reward falls this far below its best while the trained one rises."""
    min_diversity: float = 0.3
    """Alarm when within-group diversity falls below this share of its first value."""
    min_reward_std: float = 0.02
    """Alarm when the mean within-group reward std falls below this share of its first value."""
    max_zero_std: float = 0.9
    """Alarm when a larger share of the groups has no reward variance."""
    max_pixel_drift: float = 0.15
    """Alarm when dark share, saturation or grid energy moves this far from the base."""
    max_kl: float | None = None
    """Alarm when the mean KL to the reference exceeds this."""


class RunConfig(Section):
    """Everything about a training run."""

    model: ModelConfig = ModelConfig.model_validate({})
    lora: LoraConfig = LoraConfig()
    prompts: PromptsConfig = PromptsConfig()
    data: str | None = None
    """Given media for the methods that need them: a folder with captions, or preference pairs as jsonl or parquet."""
    rewards: Rewards = {"shapes": RewardEntry()}
    """Trained rewards: name: weight, or name: {weight, params}."""
    held_out_rewards: Rewards = {}
    """Evaluated, never trained."""
    method: SerializeAsAny[Section]
    """`name` and the method's own options: see `visalign describe METHOD`."""
    rollout: RolloutConfig = RolloutConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    monitor: MonitorConfig = MonitorConfig()
    output: str = "runs/run"
    seed: int = 0

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any, info: ValidationInfo) -> Section:
        if isinstance(value, Section):
            return value
        if not isinstance(value, dict) or "name" not in value:
            raise InputError(f"method needs a name, as in method: {{name: grpo}}; got {value!r}")
        return parse(registry.load("methods", value["name"]).Config, value)

    @field_validator("rewards", "held_out_rewards", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise InputError(f"rewards are name: weight pairs, as in {{shapes: 1.0}}; got {value!r}")
        return {k: {"weight": v} if isinstance(v, int | float) else v for k, v in value.items()}


def load_config(source: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """A run's config from a YAML file (any extension) or plain values, with `a.b=value` overrides.

    Raises:
        InputError: the file is missing or not YAML, a key is unknown, a value is not allowed.
    """
    values = dict(source) if isinstance(source, dict) else read_yaml(Path(source))
    for override in overrides:
        _override(values, override)
    if "method" not in values:
        raise InputError("the config names no method; add for example method: {name: grpo}")
    return parse(RunConfig, values)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file, or from the shipped configs when `path` starts with `configs/` and is not found."""
    if not path.exists() and path.parts[:1] == ("configs",):
        path = Path(__file__).parent / path
    if not path.is_file():
        raise InputError(f"config file {str(path)!r} does not exist; give a YAML file such as configs/shapes/grpo.yaml")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{str(path)!r} holds {type(values).__name__}, not a mapping of keys to values")
    return values


def _override(values: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign:
        raise InputError(f"override {text!r} is not key=value, as in optimizer.lr=1e-4")
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise InputError(f"override {text!r}: {part!r} holds a value, not keys")
    values[last] = _scalar(value)


def _scalar(text: str) -> Any:
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)  # YAML 1.1 reads 1e-4 as a string
    except ValueError:
        return yaml.safe_load(text)


def dump_yaml(config: RunConfig) -> str:
    """The resolved config as YAML that loads back to the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """The JSON schema of a run's config, with the options of every built-in method under `method`."""
    result = RunConfig.model_json_schema()
    methods = [registry.load("methods", name).Config.model_json_schema() for name in registry.names("methods")]
    result["properties"]["method"] = {
        "anyOf": methods,
        "description": result["properties"]["method"].get("description", ""),
    }
    return result
