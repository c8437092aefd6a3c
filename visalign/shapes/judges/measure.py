"""How good each judge is, by the verifier: on renders and damaged renders, and on samples of the base model.

All captions are held out. What a damaged render shows is read before the damage; how faulty a sample is, by how much of
it no scene explains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from visalign import registry
from visalign.shapes.judges import clip as clips
from visalign.shapes.judges import heads
from visalign.shapes.judges.damage import damage, draw_damage, vary
from visalign.shapes.judges.data import alter, held_out_descriptions
from visalign.shapes.judges.faults import sample
from visalign.shapes.judges.metrics import accuracy, auroc, binary, spearman
from visalign.shapes.judges.qwen import FRAMES, draw_clips
from visalign.shapes.judges.recipes import (
    ClipRecipe,
    DetectorRecipe,
    HeadRecipe,
    JudgeRecipe,
    PreferenceRecipe,
    QwenRecipe,
)
from visalign.shapes.render import render
from visalign.shapes.scenes import Description, place
from visalign.shapes.verifier import verify
from visalign.types import Media, Prompts

VIDEO_RATE = 8.0
Figures = dict[str, float]
Table = dict[str, Figures]
"""Figures of each test."""


@dataclass(frozen=True)
class Trial:
    """Pictures with held-out captions, and the truth about them.

    Attributes:
        pixels: (N, 3, S, S) in [0, 1].
        rows: metadata of the captions.
        right: 1 where the verifier finds that the picture shows the caption, (N,) float32.
        graded: its partial credit, (N,) float32.
        strength: how damaged the picture is, (N,) float32.
        flawed: whether it is, (N,) float32.
        total: number of objects, (N,) int64.
    """

    pixels: Tensor
    rows: tuple[dict[str, Any], ...]
    right: Tensor
    graded: Tensor
    strength: Tensor
    flawed: Tensor
    total: Tensor

    @property
    def captions(self) -> list[str]:
        """The texts."""
        return [row["prompt"] for row in self.rows]


def chosen_descriptions(recipe: JudgeRecipe) -> list[Description]:
    """As many held-out descriptions as the recipe says, each about as often as the others."""
    rng = Random(f"{recipe.seed} test")
    known = held_out_descriptions()
    descriptions = list(known) * -(-recipe.tests // len(known))
    rng.shuffle(descriptions)
    return descriptions[: recipe.tests]


def rendered(recipe: JudgeRecipe, damaged: float, opposite: bool = False) -> Trial:
    """Renders, half of them of something that differs from the caption in one fact, a share of them damaged.

    Args:
        recipe: says how many.
        damaged: the share.
        opposite: right where it is wrong otherwise.
    """
    rng = Random(f"{recipe.seed} test {damaged} {opposite}")
    descriptions = chosen_descriptions(recipe)
    shown = [alter(d, rng) if (i % 2 == 0) is opposite else d for i, d in enumerate(descriptions)]
    clean = render([place(d, rng) for d in shown], recipe.size, rng.getrandbits(62))
    kinds, strength = draw_damage(len(shown), damaged, rng.getrandbits(62))
    rows = tuple(d.metadata() for d in descriptions)
    verdict = verify(clean, rows)
    return Trial(
        pixels=damage(vary(clean, rng.getrandbits(62)), kinds, strength, rng.getrandbits(62)),
        rows=rows,
        right=verdict.strict,
        graded=verdict.graded,
        strength=strength,
        flawed=(kinds >= 0).float(),
        total=torch.tensor([len(objects) for objects in verdict.objects]),
    )


def sampled(recipe: JudgeRecipe) -> Trial:
    """Samples of the base model for held-out captions."""
    found = sample(recipe.samples, [d.metadata() for d in chosen_descriptions(recipe)], recipe.seed + 1)
    verdict = verify(found.pixels, found.rows)
    return Trial(
        pixels=found.pixels,
        rows=found.rows,
        right=verdict.strict,
        graded=verdict.graded,
        strength=found.strength,
        flawed=found.faulty.float(),
        total=torch.tensor([len(objects) for objects in verdict.objects]),
    )


def trials(recipe: JudgeRecipe) -> dict[str, Trial]:
    """The three tests of every judge."""
    return {"renders": rendered(recipe, 0.0), "damaged renders": rendered(recipe, 0.5), "samples": sampled(recipe)}


def measure_clip(recipe: ClipRecipe, encoder: Path, folder: Path) -> Table:
    """Does the picture show the caption? By the cosine, and by the probability that goes with it."""
    clip, table = clips.load_clip(folder), {}
    for name, trial in trials(recipe).items():
        cosine, probability = clips.judge(clip, trial.pixels, trial.captions)
        table[name] = {**binary(probability, trial.right), "spearman": spearman(cosine, trial.graded)}
    return table


def aesthetic_figures(values: Tensor, trial: Trial) -> Figures:
    """Of marks from 1 to 10, where 10 − 9 · strength is right."""
    loss = 10 - values
    score = binary(loss / 9, trial.flawed)["auroc"]
    error = float((loss - 9 * trial.strength).abs().mean())
    return {"auroc": score, "spearman": spearman(loss, trial.strength), "error": error}


def artifact_figures(values: Tensor, trial: Trial) -> Figures:
    """Of probabilities of a flaw."""
    return {**binary(values, trial.flawed), "spearman": spearman(values, trial.strength)}


_HEADS: dict[str, Callable[[Tensor, Trial], Figures]] = {"aesthetic": aesthetic_figures, "artifact": artifact_figures}


def measure_head(recipe: HeadRecipe, encoder: Path, folder: Path) -> Table:
    """How bad is the picture, and has it a flaw?"""
    clip, figures = clips.load_clip(encoder), _HEADS[recipe.name]
    # Clean renders alone have no flaws to find.
    found = {name: trial for name, trial in trials(recipe).items() if name != "renders"}
    return {name: figures(heads.judge(clip, folder, trial.pixels), trial) for name, trial in found.items()}


REWARDS = {"mps": "mps", "blip": "imagereward", "blip2": "hummingbird", "hpsv3": "hpsv3"}
"""Which reward a judge of preferences drives."""


def measure_preferences(recipe: PreferenceRecipe, encoder: Path, folder: Path) -> Table:
    """By its reward: does the picture show the caption, and is the right one of two preferred?"""
    reward, table, found = registry.load("rewards", REWARDS[recipe.name])(model=str(folder)), Table(), trials(recipe)

    def score(trial: Trial) -> Tensor:
        return reward.score(Media.of_images(trial.pixels), Prompts(tuple(trial.captions))).values

    for name, trial in found.items():
        scores = score(trial)
        table[name] = {"auroc": auroc(scores, trial.right), "spearman": spearman(scores, trial.graded)}
    first, last = found["renders"], rendered(recipe, 0.0, opposite=True)
    preferred = (score(last) > score(first)) == (last.right > first.right)
    return table | {"renders, two of a caption": {"preferred": float(preferred.float().mean())}}


def measure_videos(recipe: QwenRecipe, encoder: Path, folder: Path) -> Table:
    """Of pictures that stand still: alignment and quality; and is even motion preferred to objects that jump?"""
    reward, table = registry.load("rewards", "videoalign")(model=str(folder)), Table()

    def score(frames: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        return reward.score(Media(frames, fps=VIDEO_RATE), Prompts(tuple(captions))).components

    for name, trial in trials(recipe).items():
        parts = score(trial.pixels[:, None].expand(-1, FRAMES, -1, -1, -1), trial.captions)
        table[f"{name}, alignment"] = {
            "auroc": auroc(parts["TA"], trial.right),
            "spearman": spearman(parts["TA"], trial.graded),
        }
        table[f"{name}, quality"] = {
            "auroc": auroc(-parts["VQ"], trial.flawed),
            "spearman": spearman(-parts["VQ"], trial.strength),
        }
    clips = draw_clips(recipe, recipe.schedule.steps)  # no step of the training
    smooth, jumpy = (score(frames, clips.captions)["MQ"] for frames in (clips.smooth, clips.jumpy))
    return table | {"two videos, motion": {"preferred": float((smooth > jumpy).float().mean())}}


def measure_detector(recipe: DetectorRecipe, encoder: Path, folder: Path) -> Table:
    """Does `geneval` with this detector, and with the CLIP for the colours, agree with the verifier?"""
    geneval = registry.load("rewards", "geneval")(model=str(folder), colours=str(encoder))
    table = Table()
    for name, trial in trials(recipe).items():
        scores = geneval.score(Media.of_images(trial.pixels), Prompts(tuple(trial.captions), trial.rows))
        strict = scores.components["strict"]
        table[name] = {
            "accuracy": accuracy(strict, trial.right),
            "auroc": auroc(scores.values, trial.right),
            "spearman": spearman(scores.values, trial.graded),
        }
    return table
