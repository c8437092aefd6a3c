"""`shapes/mps`: MPS's cross-attention, trained on preferences between pictures, on the tokens of `shapes/clip`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from visalign.rewards.mps import CONDITION, look, preference, read
from visalign.rewards.mps_network import CrossModel
from visalign.shapes.autoencoder import Progress
from visalign.shapes.judges.clip import load_clip, normalised, tokenize
from visalign.shapes.judges.learning import Trainer, fast
from visalign.shapes.judges.preferences import Batch, Batches, preference_loss, swapped
from visalign.shapes.judges.recipes import MpsRecipe
from visalign.shapes.judges.towers import as_transformers, picture_processor
from visalign.shapes.models import build_tokenizer

_WEIGHTS = "model.safetensors"


def build_mps(recipe: MpsRecipe, encoder: Path) -> nn.ModuleDict:
    """The frozen CLIP, `model`, and a fresh `cross_model` from the recipe's seed."""
    clip = as_transformers(load_clip(encoder))
    torch.manual_seed(recipe.seed)
    width: int = clip.text_projection.out_features
    cross = CrossModel(recipe.depth, width, recipe.head * recipe.heads, recipe.head, recipe.hidden)
    return nn.ModuleDict({"model": clip.eval().requires_grad_(False), "cross_model": cross})


def mps_loss(network: nn.ModuleDict, batch: Batch, condition: Tensor, recipe: MpsRecipe) -> Tensor:
    """The loss of a batch; only the cross-attention has gradients."""
    with torch.no_grad(), fast(recipe.schedule.autocast):
        clean, spoilt = (look(network, normalised(p)).float() for p in (batch.pixels, batch.spoilt))
        texts, ends = (part.float() for part in read(network, tokenize(build_tokenizer(), list(batch.captions))))
    right, wrong, worse = (
        preference(network, images, texts, ends, condition) for images in (clean, swapped(clean), spoilt)
    )
    return preference_loss(right, wrong, worse, recipe.damaged_weight)


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
