"""A run's folder as training leaves it, made up: learning curves, samples of rendered scenes, alarms, a summary."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import torch

from visalign.config import dump_yaml, load_config
from visalign.media_io import write_media
from visalign.shapes.render import render
from visalign.shapes.scenes import CATEGORIES, describe, place
from visalign.types import Media

CONFIG = {
    "model": {"name": "shapes/sd3"},
    "method": {"name": "nft"},
    "rewards": {"shapes": 1.0},
    "held_out_rewards": {"jpeg_size": 1.0},
    "train": {"iterations": 60},
}
SCORES = {"shapes": (0.45, 0.25), "shapes/strict": (0.4, 0.28), "jpeg_size": (-1.2, 0.1)}
EVERY = 10


def write_run(
    run: Path, *, iterations: int = 60, prompts: int = 6, extra: str = "", video: bool = False, finished: bool = True
) -> Path:
    """Write the folder; `extra` is put into the first prompt, as a hostile one would be."""
    (run / "lora").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_yaml(load_config(CONFIG | {"output": str(run.name)})), encoding="utf-8")
    rows = [row for i in range(iterations + 1) for row in _rows(i)]
    rows.append(
        {"kind": "alarm", "iteration": 40, "name": "pixels", "message": "dark 0.10 → 0.31. Look at the samples"}
    )
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    for step in range(0, iterations + 1, EVERY):
        _write_samples(run / "samples" / f"step_{step:06d}", step, prompts, extra, video)
    if finished:
        (run / "summary.json").write_text(json.dumps(_summary(iterations)), encoding="utf-8")
    return run


def _rise(i: float) -> float:
    return 1 - math.exp(-i / 25)


def _rows(i: int) -> list[dict]:
    rng = Random(i)
    rows = []
    if i:
        rows.append(
            {"kind": "train", "iteration": i, "update": 2 * i, "model_calls": 2048 * i, "reward_calls": 128 * i}
        )
        rows[0] |= {"reward": 0.45 + 0.25 * _rise(i) + 0.03 * rng.gauss(0, 1), "reward_std": 0.3 - 0.1 * _rise(i)}
        rows[0] |= {"reward/shapes": rows[0]["reward"], "reward/shapes/strict": rows[0]["reward"] - 0.05}
        rows[0] |= {"zero_std_ratio": 0.1 + 0.2 * _rise(i), "diversity": 0.25 - 0.08 * _rise(i), "kl": 0.02 * _rise(i)}
        rows[0] |= {
            "loss": 0.2 * math.exp(-i / 30),
            "clip_fraction": 0.1 + 0.05 * rng.random(),
            "grad_norm": 0.3,
            "lr": 1e-3,
        }
        rows[0] |= {
            "pixels/dark": 0.1 + 0.2 * _rise(i),
            "pixels/saturation": 0.4,
            "pixels/high_frequency": 0.02,
            "pixels/grid": 0.05,
        }
        rows[0] |= {
            "time/rollout": 1.9,
            "time/reward": 0.3,
            "time/train": 2.6,
            "images_per_s": 26.0,
            "peak_memory_gb": 1.2,
        }
    if i % EVERY == 0:
        row = {"kind": "eval", "iteration": i, "prompts": 150}
        for name, (start, gain) in SCORES.items():
            mean = start + gain * _rise(i)
            row |= {f"eval/{name}": mean, f"eval/{name}/ci": [mean - 0.06, mean + 0.06]}
            row |= {f"eval/{name}/{tag}": mean + 0.05 * n - 0.12 for n, tag in enumerate(CATEGORIES)}
        rows.append(row)
    return rows


def _write_samples(folder: Path, step: int, count: int, extra: str, video: bool) -> None:
    folder.mkdir(parents=True)
    entries = []
    for number in range(count):
        rng = Random(number)
        description = describe(CATEGORIES[number % len(CATEGORIES)], rng)
        right = Random(1000 * step + number).random() < _rise(step) + 0.3
        scene = place(
            description if right else describe(CATEGORIES[number % len(CATEGORIES)], Random(step + number)), rng
        )
        frames = render([scene] * (8 if video else 1), 64, seed=number + step)
        prompt = description.caption + (extra if number == 0 else "")
        media = Media(frames.unsqueeze(0), fps=8.0 if video else 0.0)
        path = write_media(folder / f"{number:03d}", media, {"prompt": prompt})
        scores = {
            "shapes/strict": float(right),
            "shapes": 0.5 + 0.5 * right,
            "jpeg_size": None if number == 1 else -1.2,
        }
        entries.append({"prompt": prompt, "seed": 2**62 + number, "file": path.name, "scores": scores})
    (folder / "scores.json").write_text(json.dumps(entries), encoding="utf-8")


def _summary(iterations: int) -> dict:
    values = {"reward": "shapes/strict", "base": 0.4, "tuned": 0.65, "delta": 0.25, "delta_ci": [0.19, 0.32], "seed": 0}
    values |= {
        "rewards": {"shapes": {"base": 0.45, "tuned": 0.68}, "jpeg_size": {"delta": 0.09, "delta_ci": [-0.01, 0.19]}}
    }
    values |= {"wall_s": 312.0, "model_calls": 122_880, "reward_calls": 7680, "iterations": iterations}
    return values | {"train_prompts": 600, "held_out_prompts": 150, "stopped_by": None}


if __name__ == "__main__":  # a page to look at: python -m tests.synthetic_run FOLDER
    import sys

    from visalign.card import write_card
    from visalign.report import write_report

    torch.set_num_threads(1)
    made = write_run(Path(sys.argv[1]), video="--video" in sys.argv)
    print(write_report(made), write_card(made))
