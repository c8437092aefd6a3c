"""A run's folder as it was left, for the report and the model card: nothing outside of it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from visalign.types import InputError

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One reward before and after.

    Attributes:
        name: of the reward, or of a part as `name/part`.
        trained: whether the run was trained on it.
        base: (mean, low, high) at iteration 0.
        tuned: the same at the last evaluation.
        delta: (difference, low, high), paired over the prompts; None where the run did not get to write it.
    """

    name: str
    trained: bool
    base: tuple[float, float, float]
    tuned: tuple[float, float, float]
    delta: tuple[float, float, float] | None


@dataclass(frozen=True)
class Record:
    """What a run has written.

    Attributes:
        run: the folder.
        config: the resolved config as plain values.
        rows: all rows of metrics.jsonl in order.
        summary: summary.json, empty while the run is not finished.
    """

    run: Path
    config: Mapping[str, Any]
    rows: tuple[Row, ...]
    summary: Mapping[str, Any]

    def kind(self, kind: str) -> list[Row]:
        """The rows of one kind: `train`, `eval` or `alarm`."""
        return [r for r in self.rows if r["kind"] == kind]

    @cached_property
    def steps(self) -> list[int]:
        """Iterations that have samples, rising; the base is 0."""
        return sorted(int(p.parent.name.removeprefix("step_")) for p in self.run.glob("samples/step_*/scores.json"))

    def samples(self, step: int) -> list[Row]:
        """The samples of an iteration: prompt, seed, scores, and `path` in the run's folder."""
        folder = self.run / "samples" / f"step_{step:06d}"
        rows = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        return [row | {"path": folder / row["file"]} for row in rows]

    @property
    def num_steps(self) -> int:
        """Denoising steps of the evaluations."""
        return int(self.config["evaluation"]["num_steps"] or self.config["rollout"]["num_steps"])

    @property
    def outcomes(self) -> list[Outcome]:
        """Every evaluated reward before and after; the headline first, then whole rewards, then parts."""
        rows = self.kind("eval")
        names = eval_names(rows[0]) if rows else []
        first = self.summary.get("reward", names[0] if names else "")
        return [self._outcome(n, rows) for n in sorted(names, key=lambda n: (n != first, "/" in n, names.index(n)))]

    def _outcome(self, name: str, rows: list[Row]) -> Outcome:
        paired = dict(self.summary.get("rewards", {})) | {self.summary.get("reward"): self.summary}
        found = paired.get(name, {})
        delta = (found["delta"], *found["delta_ci"]) if "delta_ci" in found else None
        trained = name.split("/")[0] in self.config["rewards"]
        base, tuned = ((row[f"eval/{name}"], *row[f"eval/{name}/ci"]) for row in (rows[0], rows[-1]))
        return Outcome(name, trained, base, tuned, delta)


def eval_names(row: Row) -> list[str]:
    """The scores of an eval row: rewards and their parts, those keys that have an interval."""
    return [key.removeprefix("eval/").removesuffix("/ci") for key in row if key.endswith("/ci")]


def eval_categories(row: Row, name: str) -> list[str]:
    """The categories of one score."""
    names, prefix = eval_names(row), f"eval/{name}/"
    rest = [key.removeprefix(prefix) for key in row if key.startswith(prefix)]
    return [r for r in rest if "/" not in r and r != "ci" and f"{name}/{r}" not in names]


def read_record(run: Path) -> Record:
    """Read a run's folder; a last line of metrics.jsonl that a kill has torn is left out.

    Raises:
        InputError: the folder holds no run.
    """
    config = run / "config.yaml"
    if not config.is_file():
        raise InputError(f"{str(run)!r} holds no run: config.yaml is missing. Give the folder that a training wrote")
    metrics, summary = run / "metrics.jsonl", run / "summary.json"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
    rows = tuple(json.loads(line) for line in lines if line.endswith("\n"))
    values = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    return Record(run, yaml.safe_load(config.read_text(encoding="utf-8")), rows, values)
