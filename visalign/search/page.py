"""What a search leaves besides its candidates: result.json, curve.json, curve.png and one page, optimize.html."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from visalign.charts import number
from visalign.environment import environment
from visalign.report import page, thumbnail
from visalign.search.curves import charts, picture
from visalign.search.outcome import PLAIN, Outcome, Row, shown
from visalign.search.record import Kind, SearchFolder, scores_of

SHOWN = 24
"""Prompts on the page."""


def write_result(outcome: Outcome, baseline: Outcome | None, table: list[Row]) -> Path:
    """Write result.json, the curves and the page into the folder of a search.

    Args:
        outcome: what it found; it has a folder.
        baseline: what the method that it is compared with found, in its own folder.
        table: see `outcome.table`.

    Returns:
        The page's path.
    """
    folder, both = outcome.folder, [outcome] if baseline is None else [outcome, baseline]
    assert folder is not None
    plots = charts({found.method: found.curve for found in both}, shown(outcome))
    spent = {found.method: asdict(found.ledger) | {"model_calls": found.ledger.model_calls} for found in both}
    result = {"table": table, "spent": spent, "best": _best(folder, outcome)}
    folder.write("result.json", json.dumps(result, indent=1))
    folder.write("curve.json", json.dumps({found.method: _plain(found.curve) for found in both}, indent=1))
    picture(plots).save(folder.path / "curve.png")
    values = {row["name"]: row for row in table if row["reward"] == "value"}
    html = page(
        "optimize.html.jinja",
        method=outcome.method,
        prompts=folder.prompts.texts,
        settings=folder.settings,
        spent=spent,
        table=table,
        value=values[outcome.method],
        plain=values.get(PLAIN),
        charts=plots,
        names=[PLAIN, *(found.method for found in reversed(both))],
        rows=[_row(prompt, folder, both) for prompt in range(min(SHOWN, len(folder.prompts)))],
        environment=environment(),
    )
    return folder.write("optimize.html", html)


def _plain(curve: Sequence[Mapping[str, float]]) -> list[dict[str, float | None]]:
    return [{name: None if math.isnan(v) else v for name, v in point.items()} for point in curve]


def _best(folder: SearchFolder, outcome: Outcome) -> list[dict[str, Any]]:
    best = outcome.best
    return [
        {"prompt": text, "candidate": int(best.ids[row]), "seed": int(best.seeds[row]), "scores": scores_of(best, row)}
        for row, text in enumerate(folder.prompts.texts)
    ]


def _row(prompt: int, folder: SearchFolder, both: Sequence[Outcome]) -> dict[str, Any]:
    cells = [_cell("first", both[0], prompt), *(_cell("best", found, prompt) for found in reversed(both))]
    return {"prompt": folder.prompts.texts[prompt], "cells": cells}


def _cell(kind: Kind, outcome: Outcome, prompt: int) -> dict[str, Any]:
    found, folder = {"first": outcome.first, "best": outcome.best}[kind], outcome.folder
    assert folder is not None
    said = scores_of(found, prompt)
    cells = [(name, "not judged" if (v := said[name]) is None else number(v)) for name in shown(outcome)]
    about = f"candidate {int(found.ids[prompt])}, seed {int(found.seeds[prompt])}"
    return {"src": thumbnail(folder.picture(kind, prompt)), "scores": cells, "about": about}
