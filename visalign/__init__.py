"""visalign aligns diffusion and flow models for images and video with rewards and preferences.

The public names are loaded when they are first used, so that importing the package takes no time:

>>> import visalign
>>> sorted(name for name in dir(visalign) if not name.startswith("_"))[:3]
['Comparison', 'Evaluation', 'InputError']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visalign.api import load_pipeline, load_reward
    from visalign.batch import ScoreTable, score
    from visalign.comparison import Comparison, compare
    from visalign.config import RunConfig, load_config
    from visalign.evaluation import Evaluation, evaluate
    from visalign.optimizing import OptimizeResult, optimize, replay
    from visalign.planning import plan
    from visalign.prompts import read_prompts
    from visalign.report import write_report
    from visalign.sampling import sample
    from visalign.training import Result, train
    from visalign.types import InputError, Media, Prompts, RunError, Scores

__version__ = "0.1.0"

_PLACES = {
    "load_pipeline": "api",
    "load_reward": "api",
    "ScoreTable": "batch",
    "score": "batch",
    "Comparison": "comparison",
    "compare": "comparison",
    "RunConfig": "config",
    "load_config": "config",
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "OptimizeResult": "optimizing",
    "optimize": "optimizing",
    "replay": "optimizing",
    "plan": "planning",
    "read_prompts": "prompts",
    "write_report": "report",
    "sample": "sampling",
    "Result": "training",
    "train": "training",
    "InputError": "types",
    "Media": "types",
    "Prompts": "types",
    "RunError": "types",
    "Scores": "types",
}

__all__ = [
    "Comparison", "Evaluation", "InputError", "Media", "OptimizeResult", "Prompts", "Result", "RunConfig", "RunError",
    "ScoreTable", "Scores", "compare", "evaluate", "load_config", "load_pipeline", "load_reward", "optimize", "plan",
    "read_prompts", "replay", "sample", "score", "train", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'visalign' has no attribute {name!r}; it has {', '.join(__all__)}")
    return vars(importlib.import_module(f"visalign.{_PLACES[name]}"))[name]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
