"""Compare LoRAs with their base: the same prompts, seeds and rewards, win rates and differences with intervals."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visalign.api import load_pipeline
from visalign.config import RewardEntry
from visalign.evaluation import Evaluation, difference, evaluate
from visalign.media_io import write_media
from visalign.sampling import load_lora, settings
from visalign.scoring import RewardBank
from visalign.types import InputError, Prompts

BASE = "base"


@dataclass(frozen=True)
class Comparison:
    """What was compared.

    Attributes:
        evaluations: contestant → evaluation; the first is what the others are compared with.
        page: compare.html, or None where nothing was written.
    """

    evaluations: Mapping[str, Evaluation]
    page: Path | None = None

    @property
    def reference(self) -> str:
        """The contestant that the others are compared with."""
        return next(iter(self.evaluations))

    def table(self) -> list[dict[str, Any]]:
        """A row for each reward and contestant.

        Returns:
            Rows with `reward`, `name`, `mean`, `ci`, and for all but the reference `delta`, `delta_ci`, `win_rate`,
            `win_rate_ci` against it.
        """
        first = self.evaluations[self.reference]
        rows = []
        for reward in first.scores:
            for name, found in self.evaluations.items():
                mean, low, high = found.interval(reward)
                row = {"reward": reward, "name": name, "mean": mean, "ci": [low, high]}
                rows.append(row | ({} if found is first else _against(first, found, reward)))
        return rows


def _against(first: Evaluation, found: Evaluation, reward: str) -> dict[str, Any]:
    both = difference({reward: first.scores[reward]}, {reward: found.scores[reward]}, first.tags)[reward]
    return {key: both[key] for key in ("delta", "delta_ci", "win_rate", "win_rate_ci")}


def compare(
    model: str,
    loras: Sequence[str | Path],
    prompts: Prompts,
    rewards: Sequence[str] | Mapping[str, RewardEntry],
    *,
    out: str | Path | None = None,
    seed: int = 1234,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    call: Mapping[str, Any] | None = None,
    batch: int = 16,
    images: int = 24,
    dtype: str = "float32",
    device: str = "auto",
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Evaluate the base and LoRAs on the same prompts and seeds.

    Args:
        model: the base model's name, folder or hub id.
        loras: LoRA folders, and `base` for none; the first is what the others are compared with. Without `base` it is
            put first.
        prompts: P prompts, with the columns that the rewards need.
        rewards: names of rewards, or name → entry.
        out: folder for compare.html, compare.json and the pictures.
        seed: the same as in training's evaluations, so that their samples come back.
        num_steps: denoising steps; None is that of the first LoRA's run, else the pipeline's own default.
        guidance_scale: of the call; None as above.
        call: further arguments of the pipeline call; None as above.
        batch: rows of one call.
        images: samples shown side by side, evenly spread over the prompts.
        dtype: of the weights.
        device: `auto` is the GPU where there is one.
        progress: called with the name of each contestant before its turn.

    Raises:
        InputError: the model, a LoRA, a reward or a prompt is not usable.
    """
    folders = contestants(loras)
    entries = rewards if isinstance(rewards, Mapping) else {name: RewardEntry() for name in rewards}
    bank = RewardBank(entries)
    run = next((folder for folder in folders.values() if folder is not None), None)
    evaluations = {}
    for name, folder in folders.items():
        if progress is not None:
            progress(name)
        pipeline = load_pipeline(model, dtype=dtype, device=device)  # type: ignore[arg-type]
        if folder is not None:
            load_lora(pipeline, folder)
        how = settings(pipeline, run, num_steps, guidance_scale, call)
        evaluations[name] = evaluate(
            pipeline, prompts, bank, seed=seed, num_steps=how.num_steps, guidance_scale=how.guidance_scale,
            batch=batch, call=how.call, keep_images=images,
        )  # fmt: skip
    found = Comparison(evaluations)
    return found if out is None else Comparison(evaluations, write_comparison(found, Path(out), model))


def contestants(loras: Sequence[str | Path]) -> dict[str, Path | None]:
    """Name → LoRA folder, None for the base; a LoRA is called by its run's folder where that is unique.

    Raises:
        InputError: a folder does not exist.

    Example:
        >>> contestants([])
        {'base': None}
    """
    given = list(loras) if BASE in map(str, loras) else [BASE, *loras]
    missing = [str(p) for p in given if str(p) != BASE and not Path(p).is_dir()]
    if missing:
        raise InputError(
            f"{missing[0]!r} is no folder (seen from {str(Path.cwd())!r}); give a run's lora folder, or base"
        )
    short = [Path(p).resolve().parent.name if Path(p).name == "lora" else Path(p).name for p in given]
    names = [s if short.count(s) == 1 else str(p) for s, p in zip(short, given, strict=True)]
    return {name: None if str(p) == BASE else Path(p) for name, p in zip(names, given, strict=True)}


def write_comparison(found: Comparison, out: Path, model: str) -> Path:
    """Write compare.json, compare.html and the pictures; returns the page's path."""
    from visalign.report import page, thumbnail

    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for place, samples in enumerate(zip(*(e.samples() for e in found.evaluations.values()), strict=True)):
        cells = []
        for name, sample in zip(found.evaluations, samples, strict=True):
            folder = out / "samples" / _safe(name)
            folder.mkdir(parents=True, exist_ok=True)
            path = write_media(folder / f"{place:03d}", sample.media, {"prompt": sample.prompt, "seed": sample.seed})
            cells.append({"src": thumbnail(path), "scores": sample.scores})
        rows.append({"prompt": samples[0].prompt, "seed": samples[0].seed, "cells": cells})
    table = found.table()
    _write(out / "compare.json", json.dumps({"model": model, "reference": found.reference, "table": table}, indent=1))
    names = list(found.evaluations)
    count = len(found.evaluations[found.reference])
    html = page("compare.html.jinja", model=model, names=names, table=table, rows=rows, count=count)
    _write(out / "compare.html", html)
    return out / "compare.html"


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
