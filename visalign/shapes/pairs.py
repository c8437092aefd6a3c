"""Preference pairs and captioned images from the shapes world: data for the methods that learn from given media.

python -m visalign.shapes.pairs pairs runs/data/mini_pairs --model shapes/mini --count 400
python -m visalign.shapes.pairs truth runs/data/mini_truth --size 40 --count 800
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

import torch

from visalign.media_io import write_media
from visalign.prompts import read_prompts
from visalign.rollout import row_seed
from visalign.runs import write_text
from visalign.shapes.verifier import verify
from visalign.types import Conditioning, Media, Prompts


def best_and_worst(pixels: torch.Tensor, row: dict) -> tuple[int, int] | None:
    """The samples of one prompt that the verifier likes best and least; None when it sees no difference."""
    verdict = verify(pixels, [row] * len(pixels))
    values = verdict.strict.float() + verdict.graded.float()
    best, worst = int(values.argmax()), int(values.argmin())
    return None if values[best] == values[worst] else (best, worst)


def make_pairs(model: str, folder: Path, count: int, *, samples: int = 8, steps: int = 8, seed: int = 0) -> int:
    """Write up to `count` pairs, (chosen, rejected) of the model's own samples; returns how many there are."""
    from visalign import load_pipeline

    pipeline, prompts = load_pipeline(model), read_prompts("shapes/train")
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    with torch.no_grad():
        for start in range(0, len(prompts), 8):
            chunk = prompts.take(range(start, min(start + 8, len(prompts))))
            rows = chunk.repeat(samples)
            seeds = [row_seed(seed, "pairs", p, m) for p in chunk.ids for m in range(samples)]
            media = pipeline.rollout(Conditioning(rows), seeds, steps).media
            assert media is not None
            for number in range(len(chunk)):
                group = media.images[number * samples : (number + 1) * samples]
                lines += _pair_line(group, chunk.take([number]), folder, start + number)
            if len(lines) >= count:
                break
    (folder / "pairs.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    return min(count, len(lines))


def _pair_line(group: torch.Tensor, prompt: Prompts, folder: Path, number: int) -> list[str]:
    row = dict(prompt.columns[0])
    found = best_and_worst(group, row)
    if found is None:
        return []
    names = {}
    for key, place in zip(("chosen", "rejected"), found, strict=True):
        stem = folder / f"{number:05d}_{key}"
        names[key] = write_media(stem, Media.of_images(group[place : place + 1]), {"prompt": prompt.texts[0]}).name
    return [json.dumps({"prompt": prompt.texts[0], **names}) + "\n"]


def make_truth(folder: Path, count: int, size: int, *, seed: int = 0) -> int:
    """Write `count` rendered scenes that show their captions, as images with same-stem text files.

    `metadata.jsonl` beside them holds GenEval's fields of each, for the verifier.
    """
    from visalign.shapes.render import render
    from visalign.shapes.scenes import CATEGORIES, describe, place

    rng, held_out = Random(seed), set(read_prompts("shapes/held_out").texts)
    folder.mkdir(parents=True, exist_ok=True)
    made, rows = 0, []
    while made < count:
        description = describe(CATEGORIES[made % len(CATEGORIES)], rng)
        if description.caption in held_out:
            continue
        pixels = render([place(description, rng)], size, seed=rng.getrandbits(62))
        write_media(folder / f"{made:05d}", Media.of_images(pixels), {"prompt": description.caption})
        (folder / f"{made:05d}.txt").write_text(description.caption, encoding="utf-8")
        rows.append(json.dumps({"file_name": f"{made:05d}.png", **description.metadata()}))
        made += 1
    write_text(folder / "metadata.jsonl", "\n".join(rows) + "\n")
    return made


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("pairs", "truth"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="shapes/mini")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--size", type=int, default=40)
    arguments = parser.parse_args()
    if arguments.kind == "pairs":
        made = make_pairs(arguments.model, arguments.folder, arguments.count)
    else:
        made = make_truth(arguments.folder, arguments.count, arguments.size)
    print(f"{made} in {arguments.folder}")


if __name__ == "__main__":
    main()
