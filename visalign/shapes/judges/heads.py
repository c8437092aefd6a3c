"""`shapes/aesthetic` and `shapes/artifact`: small networks on the image embeddings of `shapes/clip`."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from visalign.shapes.autoencoder import Progress
from visalign.shapes.judges.clip import Clip, embed_images, load_clip
from visalign.shapes.judges.damage import damage, draw_damage, vary
from visalign.shapes.judges.data import draw_scenes
from visalign.shapes.judges.faults import training_samples
from visalign.shapes.judges.learning import Trainer
from visalign.shapes.judges.recipes import HeadRecipe
from visalign.shapes.render import render

ENCODER = "shapes/clip"
_CHUNK = 256


class Head(nn.Module):
    """Linear layers with GELU between them, from an embedding to one logit.

    Args:
        widths: from the embedding's to 1.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (B,) of embeddings (B, D)."""
        for layer in list(self.layers)[:-1]:
            embeddings = F.gelu(layer(embeddings))
        return self.layers[-1](embeddings).squeeze(-1)


def save_head(head: Head, recipe: HeadRecipe, folder: Path) -> None:
    """Write `head.safetensors` and the `config.json` that says how to use it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(head.state_dict(), folder / "head.safetensors")
    widths = [head.layers[0].in_features, *recipe.hidden, 1]
    config = {"encoder": ENCODER, "layers": widths, "range": recipe.range, "activation": "gelu"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_head(folder: Path) -> tuple[Head, tuple[float, float]]:
    """A head and the range that its logits are spread over."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    head = Head(tuple(config["layers"]))
    head.load_state_dict(load_file(folder / "head.safetensors"))
    return head.eval().requires_grad_(False), tuple(config["range"])


def aesthetic_target(strength: Tensor, flawed: Tensor) -> Tensor:
    """1 for a clean picture, 0 for the worst damage."""
    return 1 - strength


def artifact_target(strength: Tensor, flawed: Tensor) -> Tensor:
    """1 where there is a flaw, however strong."""
    return flawed


TARGETS = {"aesthetic": aesthetic_target, "artifact": artifact_target}


@torch.no_grad()
def embedded_pictures(clip: Clip, recipe: HeadRecipe, work: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (N, D), strengths (N,) and flaws (N,) of renders, half of them damaged, and of the base's samples."""
    rng, parts = Random(f"{recipe.seed} {recipe.name}"), []
    for start in range(0, recipe.pictures, _CHUNK):
        _, scenes = draw_scenes(min(_CHUNK, recipe.pictures - start), rng)
        kinds, strength = draw_damage(len(scenes), 0.5, rng.getrandbits(62))
        clean = vary(render(scenes, recipe.size, rng.getrandbits(62)), rng.getrandbits(62))
        pixels = damage(clean, kinds, strength, rng.getrandbits(62))
        parts.append((embed_images(clip, pixels), strength, (kinds >= 0).float()))
    samples = training_samples(recipe.samples, recipe.seed, work)
    for rows in torch.arange(len(samples.pixels)).split(_CHUNK):
        embeddings = embed_images(clip, samples.pixels[rows])
        parts.append((embeddings, samples.strength[rows], samples.faulty[rows].float()))
    embeddings, strength, flawed = (torch.cat(column) for column in zip(*parts, strict=True))
    return embeddings, strength, flawed


def train_head(recipe: HeadRecipe, encoder: Path, output: Path, work: Path, progress: Progress) -> None:
    """Train a head on the CLIP in `encoder`, or go on from what `work` holds, and write it to `output`."""
    embeddings, strength, flawed = embedded_pictures(load_clip(encoder), recipe, work)
    target = TARGETS[recipe.name](strength, flawed)
    torch.manual_seed(recipe.seed)
    head = Head((embeddings.shape[1], *recipe.hidden, 1))

    def loss(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(recipe.seed * recipe.schedule.steps + step)
        rows = torch.randint(len(target), (recipe.schedule.batch,), generator=draw)
        return F.binary_cross_entropy_with_logits(head(embeddings[rows]), target[rows])

    Trainer(head, recipe.schedule).run(loss, recipe.name, work, progress)
    save_head(head, recipe, output)


@torch.no_grad()
def judge(clip: Clip, folder: Path, pixels: Tensor) -> Tensor:
    """The values (B,) of pictures, within the head's range."""
    head, (low, high) = load_head(folder)
    values = torch.cat([head(embed_images(clip, part)) for part in pixels.split(_CHUNK)])
    return low + (high - low) * values.sigmoid()
