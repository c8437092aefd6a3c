"""`shapes/clip`: a CLIP of open_clip, trained on renders, captions with one wrong fact, and damaged pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from visalign.shapes.autoencoder import Progress
from visalign.shapes.flow import tokenize
from visalign.shapes.judges.damage import damage, draw_damage, vary
from visalign.shapes.judges.data import CONTENT, alter, content, draw_scenes, said, shown, truth
from visalign.shapes.judges.faults import Samples, training_samples
from visalign.shapes.judges.learning import Trainer, fast
from visalign.shapes.judges.recipes import ClipRecipe
from visalign.shapes.models import EOS, MAX_TOKENS, PAD, build_tokenizer, vocabulary
from visalign.shapes.render import render

Clip = Any
"""An open_clip CLIP; its classes hide their attributes from type checkers."""

_SCALE = math.log(10.0)
_BIAS = -5.0
_LARGEST_SCALE = math.log(100.0)
_QUALITY = 32
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Batch:
    """Pictures, captions and what is true of them; B rows, K wrong captions each, F samples of the base model.

    Attributes:
        pixels: (B + F, 3, S, S) in [0, 1].
        tokens: (B + B·K, 12); the first B are the own captions, row i's wrong ones are those from B + i·K on.
        true: which caption holds of which picture, (B, B + B·K) bool.
        content: of the scenes, (B, 45).
        strength: of the damage, (B + F,).
        flawed: 1 for damaged and faulty pictures, (B + F,) float32.
    """

    pixels: Tensor
    tokens: Tensor
    true: Tensor
    content: Tensor
    strength: Tensor
    flawed: Tensor


class Learner(nn.Module):
    """The CLIP, and what reads scenes and damage off its image embedding while it learns."""

    def __init__(self, recipe: ClipRecipe) -> None:
        super().__init__()
        self.clip = build_clip(recipe)
        self.scene = nn.Linear(recipe.embed, CONTENT)
        self.quality = nn.Sequential(nn.Linear(recipe.embed, _QUALITY), nn.GELU(), nn.Linear(_QUALITY, 2))


def model_config(recipe: ClipRecipe) -> dict[str, Any]:
    """What `open_clip_config.json` calls `model_cfg`."""
    vision, text = recipe.vision, recipe.text
    return {
        "embed_dim": recipe.embed,
        "init_logit_scale": _SCALE,
        "init_logit_bias": _BIAS,
        "vision_cfg": {
            "image_size": recipe.size,
            "patch_size": recipe.patch,
            "width": vision.width,
            "layers": vision.layers,
            "head_width": vision.width // vision.heads,
        },
        "text_cfg": {
            "context_length": MAX_TOKENS,
            "vocab_size": len(vocabulary()),
            "hf_tokenizer_name": "shapes/clip",  # of a folder, open_clip reads the tokenizer beside it
            "width": text.width,
            "layers": text.layers,
            "heads": text.heads,
            "pad_id": PAD,
            "eos_id": EOS,
            "pool_type": "eos",
        },
    }


def build_clip(recipe: ClipRecipe) -> Clip:
    """Fresh weights, drawn from the recipe's seed."""
    from open_clip.model import CLIP

    torch.manual_seed(recipe.seed)
    return CLIP(**model_config(recipe))


def save_clip(clip: Clip, recipe: ClipRecipe, folder: Path) -> None:
    """Write a folder that `open_clip.create_model("local-dir:FOLDER")` loads; the weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().half().contiguous() for k, v in clip.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    looks = {"size": recipe.size, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": model_config(recipe), "preprocess_cfg": looks}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    build_tokenizer().save_pretrained(folder)


def load_clip(folder: Path) -> Clip:
    """The model of a folder in float32, frozen."""
    import open_clip

    return open_clip.create_model(f"local-dir:{folder}").eval().requires_grad_(False)


def normalised(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] → in [-1, 1]."""
    return pixels * 2 - 1


def embed_images(clip: Clip, pixels: Tensor, autocast: bool = False) -> Tensor:
    """Unit embeddings (B, D) float32 of pictures (B, 3, S, S) in [0, 1]."""
    with fast(autocast):
        return F.normalize(clip.encode_image(normalised(pixels)).float(), dim=-1)


class Batches:
    """The batches of a training, by number."""

    def __init__(self, recipe: ClipRecipe, samples: Samples) -> None:
        self.recipe, self.samples = recipe, samples

    @cached_property
    def _tokenizer(self) -> Any:
        return build_tokenizer()

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        recipe, rng = self.recipe, Random(f"{self.recipe.seed} clip {step}")
        descriptions, scenes = draw_scenes(recipe.schedule.batch, rng)
        wrong = [alter(d, rng) for d in descriptions for _ in range(recipe.negatives)]
        kinds, strength = draw_damage(len(scenes), recipe.damaged, rng.getrandbits(62))
        clean = vary(render(scenes, recipe.size, rng.getrandbits(62)), rng.getrandbits(62))
        pixels = damage(clean, kinds, strength, rng.getrandbits(62))
        faults = torch.tensor([rng.randrange(len(self.samples.pixels)) for _ in range(recipe.faults)])
        captions, facts = [*descriptions, *wrong], shown(scenes)
        return Batch(
            pixels=torch.cat([pixels, self.samples.pixels[faults]]),
            tokens=tokenize(self._tokenizer, [d.caption for d in captions]),
            true=truth(facts, said(captions)),
            content=content(facts),
            strength=torch.cat([strength, self.samples.strength[faults]]),
            flawed=torch.cat([kinds >= 0, self.samples.faulty[faults]]).float(),
        )


def contrastive_loss(logits: Tensor, true: Tensor) -> Tensor:
    """InfoNCE both ways of (B, N) logits, N ≥ B: row i's own caption is column i, other true ones do not compete."""
    own = torch.eye(*logits.shape, dtype=torch.bool)
    masked = logits.masked_fill(true & ~own, -torch.inf)
    target = torch.arange(len(logits))
    return (F.cross_entropy(masked, target) + F.cross_entropy(masked[:, : len(logits)].T, target)) / 2


def judgement_loss(logits: Tensor, negatives: int) -> Tensor:
    """Cross-entropy of each row's own caption (right) against its own `negatives` (wrong), in equal parts."""
    count = len(logits)
    right = logits.diagonal()
    columns = count + torch.arange(count * negatives).view(count, negatives)
    wrong = logits.gather(1, columns)
    return (F.softplus(-right).mean() + F.softplus(wrong).mean()) / 2


def clip_loss(learner: Learner, batch: Batch, recipe: ClipRecipe) -> Tensor:
    """The sum of the recipe's losses."""
    clip, count = learner.clip, len(batch.true)
    images = embed_images(clip, batch.pixels, recipe.schedule.autocast)
    texts = F.normalize(clip.encode_text(batch.tokens), dim=-1)
    scale = clip.logit_scale.clamp(max=_LARGEST_SCALE).exp()
    logits = scale * images[:count] @ texts.T  # (B, N)
    strength, flawed = learner.quality(images).unbind(dim=1)
    quality = F.mse_loss(strength, batch.strength) + F.binary_cross_entropy_with_logits(flawed, batch.flawed)
    return (
        contrastive_loss(logits, batch.true)
        + recipe.judge_weight * judgement_loss(logits + clip.logit_bias, recipe.negatives)
        + recipe.scene_weight * F.mse_loss(learner.scene(images[:count]), batch.content)
        + recipe.quality_weight * quality
    )


def train_clip(recipe: ClipRecipe, output: Path, work: Path, progress: Progress) -> None:
    """Train, or go on from what `work` holds, and write the model to `output`."""
    learner = Learner(recipe)
    batches = Batches(recipe, training_samples(recipe.samples, recipe.seed, work))
    trainer = Trainer(learner, recipe.schedule)
    trainer.run(lambda step: clip_loss(learner, batches(step), recipe), "clip", work, progress)
    with torch.no_grad():
        learner.clip.logit_scale.clamp_(max=_LARGEST_SCALE)
    save_clip(learner.clip, recipe, output)


@torch.no_grad()
def judge(clip: Clip, pixels: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Cosines (B,) and P(the caption is right) (B,), as the training for right against slightly wrong gave it."""
    images = torch.cat([embed_images(clip, part) for part in pixels.split(128)])
    texts = F.normalize(clip.encode_text(tokenize(build_tokenizer(), list(captions))), dim=-1)
    cosine = (images * texts).sum(dim=1)
    return cosine, (clip.logit_scale.exp() * cosine + clip.logit_bias).sigmoid()
