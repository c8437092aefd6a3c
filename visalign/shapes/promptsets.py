"""The two prompt sets, drawn from the grammar: `python -m visalign.shapes.promptsets` writes them again."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from visalign.shapes.scenes import CATEGORIES, describe

HELD_OUT_PER_CATEGORY = 25
TRAIN_PER_CATEGORY = {"single_object": 35, "two_object": 110, "colors": 110}
_OTHERS = 125
_SEED = 20_26


def draw_prompts() -> dict[str, list[dict[str, Any]]]:
    """Both splits from the seed, held-out rows first drawn; every prompt occurs once in all."""
    rng = Random(_SEED)
    splits: dict[str, list[dict[str, Any]]] = {"held_out": [], "train": []}
    for category in CATEGORIES:
        total = HELD_OUT_PER_CATEGORY + TRAIN_PER_CATEGORY.get(category, _OTHERS)
        rows: dict[str, dict[str, Any]] = {}
        while len(rows) < total:
            row = describe(category, rng).metadata()
            rows.setdefault(row["prompt"], row)
        drawn = list(rows.values())
        splits["held_out"] += drawn[:HELD_OUT_PER_CATEGORY]
        splits["train"] += drawn[HELD_OUT_PER_CATEGORY:]
    return splits


def to_jsonl(rows: list[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_prompts(folder: Path) -> None:
    """Write `train.jsonl` and `held_out.jsonl` into the folder."""
    for split, rows in draw_prompts().items():
        (folder / f"{split}.jsonl").write_text(to_jsonl(rows), encoding="utf-8")


if __name__ == "__main__":
    write_prompts(Path(__file__).resolve().parent / "data")
