"""`shapes/mps`: MPS's cross-attention, trained on preferences between pictures, on the tokens of `shapes/clip`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from visalign.rewards.mps import CONDITION, look, preference, read
from visalign.rewards.mps_network import CrossModel, cross_sizes
from visalign.shapes.autoencoder import Progress
from visalign.shapes.judges.clip import load_clip, normalised, tokenize
from visalign.shapes.judges.damage import damage, draw_damage, vary
from visalign.shapes.judges.data import draw_scenes
from visalign.shapes.judges.learning import Trainer, fast
from visalign.shapes.judges.recipes import MpsRecipe
from visalign.shapes.judges.towers import as_transformers, picture_processor
from visalign.shapes.models import build_tokenizer
from visalign.shapes.render import render

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Batch:
    """Pictures in pairs whose captions differ in one fact, and damaged copies.

    Attributes:
        pixels: (B, 3, S, S); rows 2i and 2i + 1 are a pair.
        spoilt: the same pictures, damaged.
        ids: tokens of the captions (B, T).
    """

    pixels: Tensor
    spoilt: Tensor
    ids: Tensor


class Batches:
    """The batches of a training, by number."""

    def __init__(self, recipe: MpsRecipe) -> None:
        self.recipe, self.tokenizer = recipe, build_tokenizer()

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        recipe, rng = self.recipe, Random(f"{self.recipe.seed} mps {step}")
        descriptions, scenes = draw_scenes(recipe.schedule.batch, rng)
        pixels = vary(render(scenes, recipe.size, rng.getrandbits(62)), rng.getrandbits(62))
        kinds, strength = draw_damage(len(scenes), 1.0, rng.getrandbits(62))
        spoilt = damage(pixels, kinds, strength, rng.getrandbits(62))
        return Batch(pixels, spoilt, tokenize(self.tokenizer, [d.caption for d in descriptions]))


def build_mps(recipe: MpsRecipe, encoder: Path) -> nn.ModuleDict:
    """The frozen CLIP, `model`, and a fresh `cross_model` from the recipe's seed."""
    clip = as_transformers(load_clip(encoder))
    torch.manual_seed(recipe.seed)
    width = clip.config.projection_dim
    cross = CrossModel(recipe.depth, width, recipe.head * recipe.heads, recipe.head, recipe.hidden)
    return nn.ModuleDict({"model": clip.eval().requires_grad_(False), "cross_model": cross})


def mps_loss(network: nn.ModuleDict, batch: Batch, condition: Tensor, recipe: MpsRecipe) -> Tensor:
    """Bradley-Terry: the picture of a prompt is preferred to its pair's, and to its own damaged copy."""
    with torch.no_grad(), fast(recipe.schedule.autocast):
        clean, spoilt = (look(network, normalised(p)).float() for p in (batch.pixels, batch.spoilt))
        texts, ends = (part.float() for part in read(network, batch.ids))
    other = clean.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    right, wrong, worse = (preference(network, images, texts, ends, condition) for images in (clean, other, spoilt))
    return F.softplus(wrong - right).mean() + recipe.damaged_weight * F.softplus(worse - right).mean()


def condition_of(network: nn.ModuleDict) -> Tensor:
    """Token features (C, D) of what people judge by."""
    with torch.no_grad():
        return read(network, tokenize(build_tokenizer(), [CONDITION]))[0][0]


def train_mps(recipe: MpsRecipe, encoder: Path, output: Path, work: Path, progress: Progress) -> None:
    """Train on the CLIP in `encoder`, or go on from what `work` holds, and write the model to `output`."""
    network, batches = build_mps(recipe, encoder), Batches(recipe)
    condition = condition_of(network)
    trainer = Trainer(network, recipe.schedule)
    trainer.run(lambda step: mps_loss(network, batches(step), condition, recipe), "mps", work, progress)
    save_mps(network, recipe, output)


def save_mps(network: nn.ModuleDict, recipe: MpsRecipe, folder: Path) -> None:
    """Write both parts in float16, with the CLIP's config, tokenizer and picture sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    clip: Any = network["model"]
    save_file({k: v.detach().half().contiguous() for k, v in network.state_dict().items()}, folder / _WEIGHTS)
    clip.config.save_pretrained(folder)
    picture_processor(recipe.size).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def load_mps(folder: Path) -> nn.ModuleDict:
    """The network of a folder in float32, frozen."""
    tensors = {k: v.float() for k, v in load_file(folder / _WEIGHTS).items()}
    clip = CLIPModel(CLIPConfig.from_pretrained(folder))
    network = nn.ModuleDict({"model": clip, "cross_model": CrossModel(*cross_sizes(tensors))})
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def judge(network: nn.ModuleDict, pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """Scores (B,) of pictures for captions."""
    texts, ends = read(network, tokenize(build_tokenizer(), list(captions)))
    return preference(network, look(network, normalised(pixels)), texts, ends, condition_of(network))
