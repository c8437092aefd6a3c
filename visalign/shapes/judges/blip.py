"""`shapes/blip`: ImageReward's BLIP from fresh weights, by preferences between pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from visalign.rewards.blip import blank_text, blank_vision, checkpoint_name
from visalign.rewards.heads import EmbeddingHead
from visalign.rewards.imagereward import HEAD, TEXT, TOKENS, VISION, look, rate
from visalign.rewards.preprocess import Preprocess
from visalign.shapes.autoencoder import Progress
from visalign.shapes.judges.clip import load_clip
from visalign.shapes.judges.learning import Trainer, fast
from visalign.shapes.judges.preferences import Batch, Batches, Taught, padded, preference_loss, swapped
from visalign.shapes.judges.recipes import BlipRecipe
from visalign.shapes.judges.teaching import Teacher
from visalign.shapes.models import build_tokenizer, vocabulary


class Learner(nn.Module):
    """ImageReward's network, and what is read off its class tokens while it learns."""

    def __init__(self, recipe: BlipRecipe, embed: int) -> None:
        super().__init__()
        vision, text = recipe.vision, recipe.text
        torch.manual_seed(recipe.seed)
        self.network = nn.ModuleDict(
            {
                "vision": blank_vision(vision.width, 4 * vision.width, vision.layers, recipe.size, recipe.patch),
                "text": blank_text(len(vocabulary()), text.width, vision.width, text.layers, 4 * text.width, TOKENS),
                "head": EmbeddingHead("", [text.width, 1]),
            }
        )
        self.taught = Taught(vision.width, text.width, embed)


def blip_loss(learner: Learner, batch: Batch, teacher: Teacher, recipe: BlipRecipe) -> Tensor:
    """Preferences, and what is read off the picture and, unseen by it, off the text."""
    prepare = Preprocess(recipe.size)
    with fast(recipe.schedule.autocast):
        clean, spoilt = (look(learner.network, prepare(p)).float() for p in (batch.pixels, batch.spoilt))
    tokens = padded(batch.captions)
    right, other, wrong, worse = (
        rate(learner.network, images, tokens.input_ids, tokens.attention_mask)
        for images in (clean, clean.roll(2, 0), swapped(clean), spoilt)
    )
    alone = learner.network["text"](**tokens, is_decoder=False).last_hidden_state[:, 0]
    preferred = preference_loss(right, wrong, worse, recipe.damaged_weight) + F.softplus(other - right).mean()
    return preferred + learner.taught(clean[:, 0], alone, batch, teacher, recipe)


def train_blip(recipe: BlipRecipe, encoder: Path, output: Path, work: Path, progress: Progress) -> None:
    """Train, or go on from what `work` holds, and write the model to `output`; the CLIP in `encoder` teaches."""
    clip = load_clip(encoder)
    teacher = Teacher(clip, recipe.size, recipe.seed)
    learner, batches = Learner(recipe, clip.text_projection.shape[1]), Batches(recipe)
    trainer = Trainer(learner, recipe.schedule)
    trainer.run(lambda step: blip_loss(learner, batches(step), teacher, recipe), "blip", work, progress)
    save_blip(learner.network, output)


def save_blip(network: nn.ModuleDict, folder: Path) -> None:
    """Write ImageReward's layout in float16, and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    vision = {checkpoint_name(k): v for k, v in network["vision"].state_dict().items()}
    parts = ((VISION, vision), (TEXT, network["text"].state_dict()), (HEAD, network["head"].state_dict()))
    tensors = {f"{prefix}{k}": v.detach().half().contiguous() for prefix, part in parts for k, v in part.items()}
    save_file(tensors, folder / "model.safetensors")
    build_tokenizer().save_pretrained(folder)
