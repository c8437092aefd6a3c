"""The built-in world: coloured shapes with a truth that can be checked, and models trained on it.

Importing this package is cheap: torch and diffusers come in with the modules that need them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

MODELS = ("sd3", "mini")
JUDGES = ("clip", "aesthetic", "artifact", "vlm", "mps", "blip", "blip2", "detector", "hpsv3", "videoalign")
SETTINGS: dict[str, Any] = {"num_steps": 8, "guidance_scale": 1.0, "call": {"max_sequence_length": 1}}
"""How the shipped models are meant to be called; SD3 without a T5 would append 256 zero tokens where one serves."""

_HERE = Path(__file__).resolve().parent
FOLDER = _HERE / "models"
"""Where the shipped models are."""


def model_path(name: str) -> Path:
    """The folder of a shipped model, an ordinary diffusers pipeline.

    Args:
        name: "sd3" (64 px) or "mini" (40 px).

    Raises:
        ValueError: no such model is shipped.

    Example:
        >>> model_path("mini").name
        'mini'
    """
    return _folder("model", name, MODELS)


def judge_path(name: str) -> Path:
    """The folder of a shipped judge.

    Args:
        name: one of `JUDGES`.

    Raises:
        ValueError: no such judge is shipped.

    Example:
        >>> judge_path("clip").name
        'clip'
    """
    return _folder("judge", name, JUDGES)


def _folder(kind: str, name: str, known: tuple[str, ...]) -> Path:
    if name not in known:
        raise ValueError(f"unknown shapes {kind} {name!r}; write one of {', '.join(known)}")
    return FOLDER / name


def prompts(split: Literal["train", "held_out"]) -> list[dict[str, Any]]:
    """GenEval rows (tag, include, exclude, prompt) of one split; no prompt is in both.

    Raises:
        ValueError: the split is neither "train" nor "held_out".

    Example:
        >>> sorted(prompts("held_out")[0])
        ['exclude', 'include', 'prompt', 'tag']
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"unknown split {split!r}; write 'train' or 'held_out'")
    lines = (_HERE / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
