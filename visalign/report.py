"""report.html: one file that works from disk, with curves, samples over time beside the base, alarms and the settings.

It reads the run's folder and nothing else, so it can be written again at any time, also of a run that was killed.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from visalign.card import snippet
from visalign.charts import Chart, Series, draw, number, padded, spread
from visalign.environment import environment
from visalign.media_io import read_media, to_uint8
from visalign.record import Outcome, Record, Row, eval_categories, eval_names, read_record

SHOWN_STEPS = 6
"""Columns of the sample table: the base, the last, and those between, evenly spread."""
SHOWN_SCORES = 3
"""Scores under a picture, the headline first."""
THUMBNAIL = 192
"""Longest side of a thumbnail in pixels; smaller images stay as they are, without loss."""
_FRAMES = 16
_NOTES = {
    "kl": "distance to the base model",
    "clip_fraction": "share of samples whose ratio is clipped",
    "ratio": "mean of π/π_old; 1 on policy",
    "zero_std_ratio": "share of groups without reward variance",
    "reward_std": "mean within-group standard deviation",
    "diversity": "mean distance within groups, in pixel values",
}
_COUNTERS = ("kind", "iteration", "update", "model_calls", "reward_calls", "time/total")


def write_report(run: Path) -> Path:
    """Write `report.html` into a run's folder.

    Returns:
        Its path.

    Raises:
        InputError: the folder holds no run.
    """
    record = read_record(run)
    path, temporary = run / "report.html", run / ".report.html.tmp"
    temporary.write_text(render(record), encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(record: Record) -> str:
    """The page as text."""
    return page(
        "report.html.jinja",
        record=record,
        outcomes=record.outcomes,
        charts=charts(record),
        samples=sample_table(record),
        alarms=record.kind("alarm"),
        environment=environment(),
        config_text=(record.run / "config.yaml").read_text(encoding="utf-8"),
        snippet=snippet(record, f"{record.config['output']}/lora"),
    )


def page(template: str, **values: Any) -> str:
    """A template of `visalign/templates` as text; every value is escaped, so a prompt cannot become markup."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    env = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    env.undefined = jinja2.StrictUndefined
    env.filters |= {"number": number, "signed": signed, "duration": duration, "whiskers": whiskers, "score": score}
    return env.get_template(template).render(**values)


def score(value: float) -> str:
    """A score with the same number of decimals as its neighbours.

    Example:
        >>> score(0.28), score(-1.6378), score(4321.0)
        ('0.280', '-1.638', '4321')
    """
    return f"{value:.3f}" if abs(value) < 100 else number(value)


def signed(value: float) -> str:
    """A difference with its sign.

    Example:
        >>> signed(0.25), signed(-0.5)
        ('+0.25', '−0.5')
    """
    return ("+" if value >= 0 else "−") + number(abs(value))


def whiskers(outcome: Outcome, width: int = 180) -> dict[str, list[float]]:
    """Places of (mean, low, high) before and after on one axis of `width` pixels."""
    ends = padded(min(*outcome.base, *outcome.tuned), max(*outcome.base, *outcome.tuned))
    scale = (width - 12) / (ends[1] - ends[0])
    both = {"base": outcome.base, "tuned": outcome.tuned}
    return {name: [round(6 + (v - ends[0]) * scale, 1) for v in values] for name, values in both.items()}


def duration(seconds: float) -> str:
    """A time for people.

    Example:
        >>> duration(42.0), duration(3725)
        ('42 s', '1 h 2 min')
    """
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def charts(record: Record) -> dict[str, list[Chart]]:
    """The charts by heading; only what was logged is drawn."""
    train, evals = record.kind("train"), record.kind("eval")
    seen: dict[str, None] = dict.fromkeys(k for row in train for k, v in row.items() if isinstance(v, int | float))
    rewards = [k for k in seen if k.startswith("reward/")]
    together = {
        "Rewards in training": [("reward", ["reward"]), *([("each reward", rewards)] if rewards else [])],
        "Health": [(k, [k]) for k in ("kl", "clip_fraction", "diversity", "reward_std", "zero_std_ratio")]
        + [("pixel statistics", [k for k in seen if k.startswith("pixels/")])],
        "Optimisation": [(k, [k]) for k in ("loss", "ratio", "grad_norm", "lr")],
        "Speed": [("seconds an iteration", [k for k in seen if k.startswith("time/") and k not in _COUNTERS])]
        + [(k, [k]) for k in ("images_per_s", "peak_memory_gb")],
    }
    used = {key for plots in together.values() for _, keys in plots for key in keys}
    together["Further metrics"] = [(k, [k]) for k in seen if k not in used and k not in _COUNTERS]
    drawn = {head: [c for title, keys in plots for c in _plot(title, keys, train)] for head, plots in together.items()}
    return {head: plots for head, plots in ({"Held-out prompts": _evaluations(evals)} | drawn).items() if plots}


def _plot(title: str, keys: Sequence[str], rows: Sequence[Row]) -> list[Chart]:
    # A chart as a list: empty where nothing was logged under these keys.
    prefixes = ("reward/", "pixels/", "time/")
    lines = [
        Series(k.removeprefix(next((p for p in prefixes if k.startswith(p)), "")), points)
        for k in keys
        if (points := [(row["iteration"], row[k]) for row in rows if k in row and math.isfinite(row[k])])
    ]
    return [draw(title, lines, _NOTES.get(title, ""))] if lines else []


def _evaluations(rows: Sequence[Row]) -> list[Chart]:
    plots = []
    for name in eval_names(rows[0]) if rows else []:
        plots.append(draw(name, _scores(name, rows), "band: 95 % interval"))
        plots += _categories(name, rows)
    return plots


def _scores(name: str, rows: Sequence[Row]) -> list[Series]:
    # A line for each number of prompts: more prompts are another measurement, not another state of the model.
    key, series = f"eval/{name}", []
    for count in sorted({row["prompts"] for row in rows}, reverse=True):
        same = [row for row in rows if row["prompts"] == count]
        points, band = [(r["iteration"], r[key]) for r in same], [tuple(r[f"{key}/ci"]) for r in same]
        series.append(Series(f"{count} prompts", points, band, dots=True))
    return series


def _categories(name: str, rows: Sequence[Row]) -> list[Chart]:
    series = [
        Series(tag, [(r["iteration"], r[f"eval/{name}/{tag}"]) for r in rows if f"eval/{name}/{tag}" in r], dots=True)
        for tag in eval_categories(rows[0], name)
    ]
    return [draw(f"{name} by category", series)] if series else []


def sample_table(record: Record) -> dict[str, Any]:
    """The same prompts and seeds over time: the shown steps, and a row a prompt with one cell a step."""
    every = record.steps
    middle = [every[1:-1][i] for i in spread(len(every) - 2, SHOWN_STEPS - 2)] if len(every) > 2 else []
    steps = [every[0], *middle, every[-1]] if len(every) > 1 else every
    columns = [{(s["prompt"], s["seed"]): s for s in record.samples(step)} for step in steps]
    names = [o.name for o in record.outcomes][:SHOWN_SCORES]
    rows = [
        {"prompt": prompt, "seed": seed, "cells": [_cell(c.get((prompt, seed)), names) for c in columns]}
        for prompt, seed in (columns[-1] if columns else {})
    ]
    return {"steps": steps, "rows": rows}


def _cell(sample: Row | None, names: Sequence[str]) -> dict[str, Any] | None:
    if sample is None:  # an evaluation of fewer prompts
        return None
    scores = [(name, sample["scores"][name]) for name in names if name in sample["scores"]]
    shown = [(name, "not judged" if value is None else number(value)) for name, value in scores]
    return {"src": thumbnail(sample["path"]), "scores": shown}


def thumbnail(path: Path) -> str:
    """An image or a (moving, at most 16 frames) video as a WebP data URI."""
    media = read_media(path)
    frames = to_uint8(media.pixels[0])
    pictures = [_small(Image.fromarray(frames[i])) for i in spread(len(frames), _FRAMES)]
    exact = max(frames.shape[1:3]) <= THUMBNAIL
    buffer = BytesIO()
    seconds = len(frames) / media.fps if media.fps else 1.0
    options = {"lossless": exact, "quality": 85, "loop": 0, "duration": round(1000 * seconds / len(pictures))}
    pictures[0].save(buffer, format="WEBP", save_all=True, append_images=pictures[1:], **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _small(picture: Image.Image) -> Image.Image:
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return picture
