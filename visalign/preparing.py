"""Build all parts of a run from its config, refuse what could not learn, and put a checkpoint's state back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from visalign import distributed, lora, registry
from visalign.config import RunConfig
from visalign.evaluation import Evaluation
from visalign.experience import Actors, check_recipe
from visalign.given import Given, open_given
from visalign.methods.base import MediaMethod, PairMethod, SampleMethod, TrajectoryMethod
from visalign.monitor import Monitor
from visalign.optimizer import Optimizer, learning_rate_schedule
from visalign.policy import Policy
from visalign.prompts import read_prompts
from visalign.runs import RunFolder
from visalign.scoring import RewardBank
from visalign.types import InputError, Prompts

if TYPE_CHECKING:
    from visalign.pipelines.pipeline import Pipeline

Progress = Callable[[dict[str, Any]], None]


@dataclass
class Counters:
    """What the next iteration depends on besides tensors; all of it stands in a checkpoint."""

    iteration: int = 0
    model_calls: int = 0
    reward_calls: int = 0
    seconds: float = 0.0
    best: float = float("-inf")
    best_iteration: int = 0
    learnt: bool = False
    base_scores: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Run:
    """The parts of a run."""

    config: RunConfig
    actors: Actors
    eval_bank: RewardBank
    optimizer: Optimizer
    monitor: Monitor
    folder: RunFolder
    prompts: Prompts
    held_out: Prompts
    given: Given | None
    counters: Counters
    evaluations: dict[int, Evaluation] = field(default_factory=dict)


def open_run(config: RunConfig, resume: Path | Literal["latest"] | None, progress: Progress | None) -> Run:
    """Build all parts of a run and, if asked, put a checkpoint's state back."""
    method = registry.load("methods", config.method.name)(config.method)  # type: ignore[attr-defined]
    check_groups(config, method)
    prompts, held_out = read_prompts(config.prompts.train), read_prompts(config.prompts.held_out)
    judges = reward_device(config.model.device)
    bank = RewardBank(config.rewards, judges)
    eval_bank = RewardBank({**config.held_out_rewards, **config.rewards}, judges).alone()
    monitor = Monitor(config.monitor)
    pipeline = open_pipeline(config)
    check_recipe(config, method, pipeline)
    policy = Policy(pipeline.denoisers, config.lora, pipeline.family.lora_targets, config.seed)
    if config.lora.init is not None:
        policy.load_folded(lora.read(Path(config.lora.init)))
    given = open_given(config, method)
    actors = Actors(config, pipeline, policy, method, bank)
    total = config.train.iterations * config.train.updates
    schedule = learning_rate_schedule(config.optimizer.schedule, config.optimizer.warmup, total)
    optimizer = Optimizer(policy.parameters, schedule, config.optimizer)
    folder = RunFolder(Path(config.output), progress if distributed.is_main() else None)
    run = Run(config, actors, eval_bank, optimizer, monitor, folder, prompts, held_out, given, Counters())
    for name in sorted({"ema", "old"} & wanted_snapshots(config, method)):
        policy.snapshot(name)
    folder.open(config, resume)
    if resume is not None:
        restore(run, folder.checkpoint(resume))
    return run


def reward_device(name: str) -> str:
    """Where rewards compute: on the model's device."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_pipeline(config: RunConfig) -> Pipeline:
    """The pipeline that a config names, with its options."""
    from visalign import load_pipeline

    model = config.model
    pipeline = load_pipeline(
        model.name, dtype=model.dtype, device=model.device, attention=model.attention, compile=model.compile,
        quantise=model.quantise, offload=model.offload, tiling=model.tiling,
    )  # fmt: skip
    if model.gradient_checkpointing:
        denoisers: list[Any] = list(pipeline.denoisers.values())
        for denoiser in denoisers:
            denoiser.enable_gradient_checkpointing()
    return pipeline


def check_groups(config: RunConfig, method: Any) -> None:
    """Refuse sizes that cannot learn.

    Raises:
        InputError: group-relative advantages from groups of one, or a batch that cannot be split.
    """
    if isinstance(method, TrajectoryMethod | SampleMethod) and config.train.group_size < 2:
        raise InputError(
            f"train.group_size is {config.train.group_size}, but {config.method.name} compares the samples of a group; "  # type: ignore[attr-defined]
            f"set it to at least 2 (8 to 24 is usual)"
        )
    if isinstance(method, PairMethod | MediaMethod) and config.data is None:
        raise InputError("this method learns from given media; set data to a folder with captions or a file of pairs")


def wanted_snapshots(config: RunConfig, method: Any) -> set[str]:
    """The snapshots that a run keeps."""
    old = {"old"} if "old" in method.needs or config.rollout.policy == "old" else set()
    return old | ({"ema"} if config.ema.decay else set())


def save(run: Run) -> None:
    """A checkpoint of everything that the next iteration depends on."""
    policy, counters = run.actors.policy, run.counters
    tensors = {f"policy|{k}": v for k, v in policy.weights().items()}
    for name, weights in policy.snapshots.items():
        tensors |= {f"snapshot|{name}|{k}": v for k, v in weights.items()}
    tensors |= {f"optimizer|{k}": v for k, v in run.optimizer.tensors().items()}
    state = {"counters": vars(counters), "updates": run.optimizer.updates, "monitor": run.monitor.state()}
    run.folder.save_checkpoint(counters.iteration, tensors, state, run.config.train.keep_checkpoints)


def restore(run: Run, loaded: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> None:
    """Put a checkpoint's state back."""
    tensors, state = loaded
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        kind, _, name = key.partition("|")
        parts[kind][name] = value
    policy = run.actors.policy
    policy.load_weights(parts["policy"])
    for key, value in parts["snapshot"].items():
        name, _, path = key.partition("|")
        policy.snapshots[name][path].copy_(value)
    run.optimizer.restore(parts["optimizer"], state["updates"])
    run.monitor.restore(state["monitor"])
    vars(run.counters).update(state["counters"])
