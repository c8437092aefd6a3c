"""Make a judge: train it, measure it by the verifier, and write its folder."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from visalign.shapes import judge_path
from visalign.shapes.autoencoder import Progress
from visalign.shapes.judges.blip import train_blip
from visalign.shapes.judges.blip2 import train_blip2
from visalign.shapes.judges.clip import train_clip
from visalign.shapes.judges.detector import train_detector
from visalign.shapes.judges.heads import train_head
from visalign.shapes.judges.learning import HERE, Place
from visalign.shapes.judges.measure import (
    Table,
    measure_clip,
    measure_detector,
    measure_head,
    measure_preferences,
    measure_videos,
)
from visalign.shapes.judges.measure_vlm import measure_vlm
from visalign.shapes.judges.mps import train_mps
from visalign.shapes.judges.qwen import train_qwen
from visalign.shapes.judges.recipes import JudgeRecipe, load_recipe
from visalign.shapes.judges.vlm import train_vlm


def _train_clip(recipe: Any, encoder: Path, output: Path, work: Path, progress: Progress) -> None:
    train_clip(recipe, output, work, progress)


Train = Callable[[Any, Path, Path, Path, Progress], None]
_TRAIN: dict[str, Train] = {
    "clip": _train_clip,
    "aesthetic": train_head,
    "artifact": train_head,
    "vlm": train_vlm,
    "mps": train_mps,
    "blip": train_blip,
    "blip2": train_blip2,
    "hpsv3": train_qwen,
    "videoalign": train_qwen,
    "detector": train_detector,
}
ANYWHERE = {"vlm": train_vlm}
"""Those that train on any device."""
_MEASURE: dict[str, Callable[[Any, Path, Path], Table]] = {
    "clip": measure_clip,
    "aesthetic": measure_head,
    "artifact": measure_head,
    "vlm": measure_vlm,
    "mps": measure_preferences,
    "blip": measure_preferences,
    "blip2": measure_preferences,
    "hpsv3": measure_preferences,
    "videoalign": measure_videos,
    "detector": measure_detector,
}


def train_judge(
    name: str,
    output: Path,
    *,
    clip: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    place: Place = HERE,
) -> None:
    """Train a shipped judge from its recipe and write its folder.

    The same recipe gives the same weights on the CPU of a machine with the same number of threads; a GPU adds in no
    fixed order. Intermediate state is kept in `output/training` until the end; a run that was stopped goes on from it.

    Args:
        name: one of `JUDGES`.
        output: the folder to write.
        clip: folder of the CLIP that the other judges build on; None takes the shipped one.
        resume: go on from `output/training`, if there is any.
        progress: called after every step with the stage, steps done, steps in all and the loss.
        place: the device and the processes that make batches; all but `vlm` are small, and know the CPU alone.

    Raises:
        ValueError: no such judge, `output/training` exists and `resume` is False, or a place that it does not know.
    """
    recipe, eyes, show = load_recipe(name), clip or judge_path("clip"), progress or _silent
    train_recipe(recipe, output, eyes, resume=resume, progress=show, place=place)


def train_recipe(
    recipe: JudgeRecipe, output: Path, clip: Path, *, resume: bool, progress: Progress, place: Place = HERE
) -> None:
    """As `train_judge`, for any recipe."""
    trainer = _trainer(recipe.name, place)
    work = output / "training"
    if work.exists() and not resume:
        raise ValueError(f"{work} holds an unfinished training; go on with resume=True, or delete it to start again")
    work.mkdir(parents=True, exist_ok=True)
    trainer(recipe, clip, output, work, progress)
    table = known(_MEASURE[recipe.name](recipe, clip, output))
    _write(output / "measured.json", table)
    _write(output / "recipe.json", {"recipe": recipe.model_dump(mode="json")})
    (output / "README.md").write_text(card(recipe.name, table), encoding="utf-8")
    shutil.rmtree(work)


def _trainer(name: str, place: Place) -> Train:
    if place == HERE:
        return _TRAIN[name]
    if name not in ANYWHERE:
        raise ValueError(f"{name} is trained on the CPU; only {', '.join(ANYWHERE)} takes a device and workers")
    return partial(ANYWHERE[name], place=place)


def known(table: Table) -> Table:
    """The figures that exist: of one kind of label alone, there is no AUROC."""
    return {test: {k: v for k, v in figures.items() if not math.isnan(v)} for test, figures in table.items()}


def _silent(stage: str, done: int, total: int, loss: float) -> None:
    pass


def _write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def card(name: str, table: Table) -> str:
    """The README of a judge's folder."""
    columns = list(dict.fromkeys(column for figures in table.values() for column in figures))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for test, figures in table.items():
        cells = [f"{figures[column]:.3f}" if column in figures else "" for column in columns]
        lines.append(f"| {test} | {' | '.join(cells)} |")
    return _CARD.format(name=name, text=_TEXTS[name], table="\n".join(lines))


_CARD = """# shapes/{name}

{text}
Made by `visalign shapes judges {name}` with `configs/shapes/judges/{name}.yaml`; `recipe.json` holds that
recipe and `measured.json` the figures below. Licence: Apache-2.0, as the rest of visalign.

By the verifier, on captions that it was not trained on:

{table}

`ece` is the expected calibration error of probabilities, `spearman` the rank correlation with the verifier's partial
credit or with the strength of the damage. Half of the captions of renders are wrong in one fact.
"""

_TEXTS = {
    "clip": """A CLIP of open_clip for visalign's built-in world (64 px), trained on renders and their captions, each
beside captions with one wrong fact. `open_clip.create_model("local-dir:FOLDER")` loads it; P(the caption is right) is
sigmoid(exp(logit_scale) · cosine + logit_bias).
""",
    "aesthetic": """How good a picture of visalign's built-in world looks, from 1 (ruined) to 10 (a clean render): a
small network on the unit image embedding of `shapes/clip`. `error` is the mean distance from 10 − 9 · strength, in
points.
""",
    "artifact": """P(a picture of visalign's built-in world has a flaw): a small network on the unit image embedding of
`shapes/clip`, trained on damaged renders and on samples of the base model.
""",
    "vlm": """A LLaVA of transformers for visalign's built-in world (64 px): it answers yes or no, counts, gives marks,
compares two pictures and captions. Its eyes are those of `shapes/clip`.
`AutoModelForImageTextToText.from_pretrained(FOLDER)` and `AutoProcessor.from_pretrained(FOLDER)` load it; it knows the
words of its recipe, and no others. "Same objects" holds a picture against itself and against others, "one style" a
clean one against damaged ones. `valid` is the share of answers that can be read, `frames` how well the third mark of
`videoscore2` tells videos that stand still from those whose second half shows something else. These weights were
trained on one GPU in seven minutes (`--device cuda --workers 6`); two cores of a CPU need hours.
""",
    "mps": """Which picture of a prompt is preferred in visalign's built-in world (64 px): MPS's cross-attention between
the tokens of `shapes/clip`, trained by Bradley-Terry on pictures of captions that differ in one fact, and on damaged
copies. `preferred` is how often the right picture of a caption scores above one with a wrong fact.
""",
    "blip": """How good a picture of a prompt is in visalign's built-in world (64 px): ImageReward's BLIP and head from
fresh weights, by Bradley-Terry on pictures of captions that differ in one fact, and on damaged copies, with
`shapes/clip` for a teacher. `preferred` is how often the right picture of a caption scores above one with a wrong fact.
""",
    "blip2": """Does a picture show what a text says, in visalign's built-in world (64 px)? A BLIP-2 for retrieval of
transformers from fresh weights, with `shapes/clip` for a teacher; it drives `hummingbird`. `preferred` is how often the
right picture of a caption scores above one with a wrong fact.
""",
    "hpsv3": """How a picture of a prompt would be rated in visalign's built-in world (64 px): a Qwen2-VL with HPSv3's
head of mean and spread from fresh weights, by ranking pictures of captions that differ in one fact, and damaged copies,
with `shapes/clip` for a teacher. `preferred` is how often the right picture of a caption is rated above one with a
wrong fact.
""",
    "videoalign": """Quality, motion and alignment of videos of visalign's built-in world (64 px): a Qwen2-VL with
VideoReward's head at three tokens from fresh weights, by preferences between videos that are damaged, jump, or show
something else, with `shapes/clip` for a teacher. Pictures are measured standing still.
""",
    "detector": """Where the shapes of visalign's built-in world (64 px) stand, by their names: an OWL-ViT of
transformers that began with the towers of `shapes/clip`. It drives `geneval`, with `shapes/clip` for the colours; the
figures are that reward's. `OwlViTForObjectDetection.from_pretrained(FOLDER)` loads it.
""",
}
