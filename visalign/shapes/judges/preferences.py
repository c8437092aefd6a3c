"""Preferences between pictures of a prompt: what judges of the kind of MPS and ImageReward learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from visalign.shapes.judges.damage import damage, draw_damage, vary
from visalign.shapes.judges.data import CONTENT, content, draw_scenes, shown
from visalign.shapes.judges.recipes import PreferenceRecipe, TaughtRecipe
from visalign.shapes.judges.teaching import Teacher
from visalign.shapes.models import build_tokenizer
from visalign.shapes.render import render


@dataclass(frozen=True)
class Batch:
    """Pictures in pairs whose captions differ in one fact, and damaged copies.

    Attributes:
        pixels: (B, 3, S, S); rows 2i and 2i + 1 are a pair.
        spoilt: the same pictures, damaged.
        captions: B texts.
        content: what the pictures show as numbers, (B, 45).
    """

    pixels: Tensor
    spoilt: Tensor
    captions: tuple[str, ...]
    content: Tensor


class Batches:
    """The batches of a training, by number."""

    def __init__(self, recipe: PreferenceRecipe) -> None:
        self.recipe = recipe

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        recipe, rng = self.recipe, Random(f"{self.recipe.seed} {self.recipe.name} {step}")
        descriptions, scenes = draw_scenes(recipe.schedule.batch, rng)
        pixels = vary(render(scenes, recipe.size, rng.getrandbits(62)), rng.getrandbits(62))
        kinds, strength = draw_damage(len(scenes), 1.0, rng.getrandbits(62))
        spoilt = damage(pixels, kinds, strength, rng.getrandbits(62))
        return Batch(pixels, spoilt, tuple(d.caption for d in descriptions), content(shown(scenes)))


class Taught(nn.Module):
    """What reads scenes, and the teacher's embeddings, off pictures and texts while a judge learns.

    Args:
        picture: width of what is read of a picture.
        text: width of what is read of a text.
        embed: width of the teacher's embeddings.
    """

    def __init__(self, picture: int, text: int, embed: int) -> None:
        super().__init__()
        self.scene = nn.Linear(picture, CONTENT)
        self.sight, self.meaning = nn.Linear(picture, embed), nn.Linear(text, embed)

    def forward(self, picture: Tensor, text: Tensor, batch: Batch, teacher: Teacher, recipe: TaughtRecipe) -> Tensor:
        """How far what is read of pictures (B, P) and texts (B, T) is from the truth, by the recipe's weights."""
        scene = F.mse_loss(self.scene(picture), batch.content)
        sight = F.mse_loss(self.sight(picture), teacher.images(batch.pixels))
        meaning = F.mse_loss(self.meaning(text), teacher.texts(batch.captions))
        return recipe.scene_weight * scene + recipe.teacher_weight * (sight + meaning)


def padded(captions: Sequence[str]) -> Any:
    """Ids and mask (B, T) of captions, padded to the longest."""
    return build_tokenizer()(list(captions), padding=True, return_tensors="pt", return_token_type_ids=False)


def swapped(rows: Tensor) -> Tensor:
    """Each row's partner in its pair, in its place."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def preference_loss(right: Tensor, wrong: Tensor, worse: Tensor, damaged_weight: float) -> Tensor:
    """Bradley-Terry: the picture of a prompt is preferred to its pair's, and to its own damaged copy.

    Args:
        right: scores (B,) of the pictures.
        wrong: of the pairs' pictures for the same captions.
        worse: of the damaged copies.
        damaged_weight: of the second comparison.
    """
    return F.softplus(wrong - right).mean() + damaged_weight * F.softplus(worse - right).mean()
