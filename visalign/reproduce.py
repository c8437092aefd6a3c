"""Run the reproductions, keep their table: `python -m visalign.reproduce configs/reproductions/*.yaml --seeds 0 1 2`.

Every (config, seed) that has no line yet in results.jsonl is trained and appended; the table in README.md is then drawn
from all lines. A sitting may be cut off at any time: finished runs stay, and the next call goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from visalign.config import load_config
from visalign.figures import before_and_after, curves
from visalign.runs import read_rows, write_text
from visalign.statistics import mean_interval

START, END = "<!-- table -->", "<!-- end of table -->"
KEPT = (
    "reward", "base", "tuned", "delta", "delta_ci", "wall_s", "model_calls", "reward_calls", "iterations", "categories"
)  # fmt: skip
HEADER = (
    "method",
    "claim of the paper",
    "seeds",
    "base",
    "tuned",
    "difference (95 %)",
    "model calls",
    "reward calls",
    "min",
)


def read_results(path: Path) -> list[dict[str, Any]]:
    """All finished runs."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run_one(config_path: Path, seed: int, scratch: Path, figures: Path) -> dict[str, Any]:
    """Train one config with one seed; returns its line and leaves its pictures."""
    from visalign.training import train

    output = scratch / config_path.parent.name / config_path.stem / str(seed)
    shutil.rmtree(output, ignore_errors=True)
    config = load_config(config_path, [f"seed={seed}", f"output={output}"])
    summary = train(config).summary
    figures.mkdir(parents=True, exist_ok=True)
    before_and_after(output, figures / f"{config_path.parent.name}_{config_path.stem}_{seed}.png")
    line = {"config": config_path.as_posix(), "seed": seed, "model": config.model.name}
    return line | {key: summary[key] for key in KEPT} | {"curve": curve(output, summary["reward"])}


def curve(run: Path, reward: str) -> list[tuple[float, float]]:
    """(minutes, held-out score) of every evaluation."""
    points, minutes = [], 0.0
    for row in read_rows(run):
        minutes = row.get("time/total", 60 * minutes) / 60
        if row["kind"] == "eval":
            points.append((round(minutes, 2), round(row[f"eval/{reward}"], 4)))
    return points


def claim(config_path: Path) -> str:
    """The paper's claim in a line: the first comment of the config."""
    return config_path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


def table(results: list[dict[str, Any]]) -> str:
    """One row a config, means over seeds, the interval of the difference over seeds (over prompts, for one seed)."""
    rows = [HEADER, tuple("---" for _ in HEADER)]
    for config, lines in sorted(by_config(results).items(), key=lambda item: -_mean(item[1], "tuned")):
        delta = torch.tensor([line["delta"] for line in lines])
        low, high = mean_interval(delta)[1:] if len(lines) > 1 else lines[0]["delta_ci"]
        rows.append((
            f"`{Path(config).stem}` on {lines[0]['model']}", claim(Path(config)), str(len(lines)),
            f"{_mean(lines, 'base'):.3f}", f"{_mean(lines, 'tuned'):.3f}",
            f"{float(delta.mean()):+.3f} ({low:+.3f} … {high:+.3f})", f"{_mean(lines, 'model_calls'):,.0f}",
            f"{_mean(lines, 'reward_calls'):,.0f}", f"{_mean(lines, 'wall_s') / 60:.1f}",
        ))  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def by_config(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The lines of each config."""
    runs = defaultdict(list)
    for line in results:
        runs[line["config"]].append(line)
    return runs


def _mean(lines: list[dict[str, Any]], key: str) -> float:
    return sum(line[key] for line in lines) / len(lines)


def draw(folder: Path) -> None:
    """Write the table of all results into the folder's README, and the curves of each model's runs."""
    page, results = folder / "README.md", read_results(folder / "results.jsonl")
    for model in {line["model"] for line in results}:
        lines = [line for line in results if line["model"] == model and line["seed"] == 0]
        named = {Path(line["config"]).stem: line["curve"] for line in lines}
        if named:
            curves(named, folder / "figures" / f"curves_{model.replace('/', '_')}.png")
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    write_text(page, f"{before}{START}\n{table(results)}\n\n{pictures(folder)}\n{END}{after}")


def pictures(folder: Path) -> str:
    """Links to the curves of each model and to the sheets, base and tuned, of each first seed."""
    found = sorted(p.name for p in (folder / "figures").glob("*.png"))
    shown = [name for name in found if name.startswith("curves_")] + [n for n in found if n.endswith("_0.png")]
    return "\n\n".join(f"![{name.removesuffix('.png').replace('_', ' ')}](figures/{name})" for name in shown)


def main() -> None:
    """Run what is missing and draw the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folder", type=Path, default=Path("configs/reproductions"))
    parser.add_argument("--scratch", type=Path, default=Path("runs/reproductions"))
    arguments = parser.parse_args()
    results = arguments.folder / "results.jsonl"
    for seed in arguments.seeds:
        for config in arguments.configs:
            done = {(line["config"], line["seed"]) for line in read_results(results)}
            if (config.as_posix(), seed) not in done:
                line = json.dumps(run_one(config, seed, arguments.scratch, arguments.folder / "figures"))
                with results.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
                print(line, flush=True)
                draw(arguments.folder)


if __name__ == "__main__":
    main()
