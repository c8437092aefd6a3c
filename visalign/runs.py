"""The folder of a run: config, metrics, samples, checkpoints, LoRA, report, card, summary; nothing else is written.

Only the main process writes. A resumed run cuts metrics and samples back to its checkpoint, so that its files equal
those of a run that was never stopped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from visalign import checkpoint, distributed, evaluation, media_io
from visalign.config import RunConfig, dump_yaml
from visalign.evaluation import Evaluation
from visalign.monitor import Alarm, Monitor
from visalign.trackers import Trackers
from visalign.types import InputError

# What may differ between a run and its continuation: how long, how often and what is shown, never what is learnt.
FREE = ("train.iterations", "train.max_minutes", "train.checkpoint_every", "train.keep_checkpoints", "train.trackers")


class RunFolder:
    """Reads and writes one run's folder.

    Args:
        path: the folder.
        progress: called with every row that is logged.
    """

    def __init__(self, path: Path, progress: Callable[[dict[str, Any]], None] | None) -> None:
        self.path, self.progress = path, progress
        self.writes = distributed.is_main()
        self.trackers = Trackers((), path)

    def open(self, config: RunConfig, resume: Path | Literal["latest"] | None) -> None:
        """Make the folder, or check that a resumed run's config is the one that it was started with.

        Raises:
            InputError: the folder holds another run, or the resumed config differs.
        """
        known = self.path / "config.yaml"
        if resume is not None:
            refuse_changes(known, config)
            self.cut(int(checkpoint.load(self.checkpoint_path(resume))[1]["counters"]["iteration"]))
        elif (self.path / "metrics.jsonl").exists():
            raise InputError(
                f"{str(self.path)!r} already holds a run; continue it with --resume, or set output=runs/other"
            )
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(known, dump_yaml(config))
            self.trackers = Trackers(config.train.trackers, self.path)
        distributed.wait()

    def cut(self, iteration: int) -> None:
        """Drop what a killed run wrote after its checkpoint."""
        if not self.writes:
            return
        rows = [r for r in read_rows(self.path) if r["iteration"] <= iteration]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
        for later in (self.path / "samples").glob("step_*"):
            if int(later.name.removeprefix("step_")) > iteration:
                shutil.rmtree(later)

    def log(self, row: dict[str, Any], monitor: Monitor) -> list[Alarm]:
        """Append a row to metrics.jsonl, show it, and return the alarms that it raises."""
        alarms = monitor.observe(row)
        rows = [
            row,
            *({"kind": "alarm", "iteration": a.iteration, "name": a.name, "message": a.message} for a in alarms),
        ]
        if self.writes:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(r) + "\n" for r in rows)
            self.trackers.log(row)
        for shown in rows if self.progress else ():
            assert self.progress is not None
            self.progress(shown)
        return alarms

    def write_samples(self, iteration: int, evaluation: Evaluation) -> None:
        """The same prompts and seeds at every evaluation, as images or clips beside their scores."""
        if not self.writes:
            return
        folder = self.path / "samples" / f"step_{iteration:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        index = []
        for number, sample in enumerate(evaluation.samples()):
            name = media_io.write_media(
                folder / f"{number:03d}", sample.media, {"prompt": sample.prompt, "seed": sample.seed}
            )
            index.append({"prompt": sample.prompt, "seed": sample.seed, "file": name.name, "scores": sample.scores})
        write_text(folder / "scores.json", json.dumps(index, indent=1))

    def save_checkpoint(self, iteration: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> None:
        """Write a numbered checkpoint and delete the oldest ones."""
        if self.writes:
            checkpoint.save(self.path / "checkpoints" / f"{iteration:06d}", tensors, state)
            checkpoint.prune(self.path, keep)
        distributed.wait()

    def checkpoint_path(self, resume: Path | Literal["latest"]) -> Path:
        """The checkpoint that `resume` names."""
        return checkpoint.latest(self.path) if resume == "latest" else Path(resume)

    def checkpoint(self, resume: Path | Literal["latest"]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and state of the checkpoint that `resume` names."""
        return checkpoint.load(self.checkpoint_path(resume))

    def finish(self, summary: dict[str, Any]) -> Path:
        """Write summary, report and model card; returns the report's path."""
        from visalign.card import write_card
        from visalign.report import write_report

        report = self.path / "report.html"
        if self.writes:
            write_text(self.path / "summary.json", json.dumps(summary, indent=1))
            report = write_report(self.path)
            write_card(self.path)
            self.trackers.close()
        return report


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_rows(run: Path) -> Iterator[dict[str, Any]]:
    """Rows of metrics.jsonl; a last line that a kill has torn is left out."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return (json.loads(line) for line in lines if line.endswith("\n"))


def refuse_changes(known: Path, config: RunConfig) -> None:
    """Refuse to resume under another config.

    Raises:
        InputError: the run has no config, or keys differ that decide what is learnt; they are listed.
    """
    if not known.exists():
        raise InputError(f"{str(known.parent)!r} holds no run to resume; start it without --resume")
    import yaml

    before, now = flat(yaml.safe_load(known.read_text(encoding="utf-8"))), flat(yaml.safe_load(dump_yaml(config)))
    changed = [k for k in sorted(before.keys() | now.keys()) if k not in FREE and before.get(k) != now.get(k)]
    if changed:
        rows = "\n".join(f"  {k}: {before.get(k)!r} → {now.get(k)!r}" for k in changed)
        raise InputError(f"the config differs from the one that {str(known.parent)!r} was started with:\n{rows}")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return result


def summarise(
    config: RunConfig, counters: Mapping[str, Any], last: Evaluation, train_prompts: int, stopped: Alarm | None
) -> dict[str, Any]:
    """Before and after on the held-out prompts, with the interval of the difference, and what it cost."""
    base = {name: torch.tensor(values) for name, values in counters["base_scores"].items()}
    changes = evaluation.difference(base, last.scores, last.tags)
    name = headline_name(last.scores)
    return {
        "reward": name,
        **{key: changes[name][key] for key in ("base", "tuned", "delta", "delta_ci", "win_rate")},
        "categories": last.categories(name),
        "rewards": changes,
        "wall_s": counters["seconds"],
        "model_calls": counters["model_calls"],
        "reward_calls": counters["reward_calls"],
        "iterations": counters["iteration"],
        "train_prompts": train_prompts,
        "held_out_prompts": len(last),
        "seed": config.seed,
        "stopped_by": stopped.name if stopped else None,
    }


def headline_name(scores: Mapping[str, Tensor]) -> str:
    """The score that a run is judged by: the strict verifier where there is one, else the first trained reward."""
    strict = [name for name in scores if name.endswith("/strict")]
    return strict[0] if strict else next(iter(scores))
