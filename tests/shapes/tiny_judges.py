"""Recipes of the judges at a size that trains in a second."""

from __future__ import annotations

from random import Random

from visalign.shapes.judges.data import draw_scenes
from visalign.shapes.judges.learning import Trainer
from visalign.shapes.judges.recipes import (
    Blip2Recipe,
    BlipRecipe,
    ClipRecipe,
    DetectorRecipe,
    HeadRecipe,
    MpsRecipe,
    QwenRecipe,
    VlmRecipe,
    load_recipe,
)
from visalign.shapes.render import render

SCHEDULE = {
    "steps": 3,
    "batch": 6,
    "learning_rate": 1e-3,
    "warmup": 2,
    "ema_decay": 0.9,
    "autocast": False,
    "save_every": 2,
}
SMALL = {
    "schedule": SCHEDULE,
    "samples": {"model": "sd3", "count": 2, "steps": (1, 2)},
    "tests": 6,
}
TOWER = {"width": 16, "layers": 2, "heads": 2}
PHASES = [phase.model_dump() | {"steps": 1} for phase in load_recipe("vlm").phases]


def small(name, **changes):
    return type(load_recipe(name)).model_validate(load_recipe(name).model_dump() | SMALL | changes)


CLIP: ClipRecipe = small("clip", embed=16, vision=TOWER, text=TOWER, faults=2)
COMPARED = {"pair_layer": 1, "common_layer": 2}
VLM: VlmRecipe = small(
    "vlm", text=TOWER, feed_forward=32, room=60, phases=PHASES, meaning_layer=1, verdict_layer=2, **COMPARED
)
HEADS: dict[str, HeadRecipe] = {n: small(n, hidden=(8,), pictures=12) for n in ("aesthetic", "artifact")}
MPS: MpsRecipe = small("mps", head=8, heads=2, hidden=16)
BLIP: BlipRecipe = small("blip", vision=TOWER | {"width": 64}, text=TOWER | {"width": 64})
BLIP2: Blip2Recipe = small("blip2", vision=TOWER, text=TOWER, embed=8, queries=3)
QWENS: dict[str, QwenRecipe] = {n: small(n, vision=TOWER, text=TOWER) for n in ("hpsv3", "videoalign")}
DETECTOR: DetectorRecipe = small("detector")


def ignore(stage, done, total, loss):
    pass


def pictures(count, seed=0):
    descriptions, scenes = draw_scenes(count, Random(seed))
    return descriptions, scenes, render(scenes, 64, seed)


def fall(module, recipe, loss, steps, rate):
    """By what share the loss of one batch falls while a module learns it."""
    trainer = Trainer(module, recipe.schedule.model_copy(update={"steps": steps, "learning_rate": rate}))
    losses = [trainer.train_step(lambda _: loss()) for _ in range(steps)]
    return 1 - losses[-1] / losses[0]
