"""`shapes/blip2`: a BLIP-2 for retrieval, from fresh weights, whose queries find what a caption says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Blip2Config, Blip2ForImageTextRetrieval

from visalign.rewards.hummingbird import best_query
from visalign.rewards.preprocess import Preprocess
from visalign.shapes.autoencoder import Progress
from visalign.shapes.judges.clip import load_clip
from visalign.shapes.judges.learning import Trainer, fast
from visalign.shapes.judges.preferences import Batch, Batches, Taught, padded, preference_loss, swapped
from visalign.shapes.judges.recipes import Blip2Recipe
from visalign.shapes.judges.teaching import Teacher
from visalign.shapes.models import MAX_TOKENS, PAD, build_tokenizer, vocabulary

Blip2 = Any
"""A Blip2ForImageTextRetrieval."""

_SCALE = 20.0
"""Of cosines in the loss, at the start."""
_RANGE = 0.02


class Learner(nn.Module):
    """The BLIP-2, what is read off its class tokens, and the temperature, while it learns."""

    def __init__(self, recipe: Blip2Recipe, embed: int) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.model: Blip2 = build_blip2(recipe)
        self.taught = Taught(recipe.vision.width, recipe.embed, embed)
        self.scale = nn.Parameter(torch.tensor(_SCALE).log())


def build_blip2(recipe: Blip2Recipe) -> Blip2:
    """Fresh weights; the queries differ from the start."""
    vision, text = recipe.vision, recipe.text
    config = Blip2Config(
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": 4 * vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": recipe.size,
            "patch_size": recipe.patch,
            "initializer_range": _RANGE,
        },
        qformer_config={
            "vocab_size": len(vocabulary()),
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "max_position_embeddings": MAX_TOKENS,
            "pad_token_id": PAD,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": True,
        },
        num_query_tokens=recipe.queries,
        image_text_hidden_size=recipe.embed,
    )
    model = Blip2ForImageTextRetrieval(config)
    nn.init.normal_(model.query_tokens, std=_RANGE)
    return model


def blip2_loss(learner: Learner, batch: Batch, teacher: Teacher, recipe: Blip2Recipe) -> Tensor:
    """Preferences, each caption's picture among all of the batch, and what is read off pictures and texts."""
    prepare, tokens = Preprocess(recipe.size, "squash"), padded(batch.captions)
    with fast(recipe.schedule.autocast):
        clean, spoilt = (learner.model(pixel_values=prepare(p), **tokens) for p in (batch.pixels, batch.spoilt))
    queries, texts = clean.image_embeds.float(), clean.text_embeds.float()  # (B, Q, D), (B, D)
    scale = learner.scale.exp()
    right, wrong, worse = (
        scale * best_query(seen, texts) for seen in (queries, swapped(queries), spoilt.image_embeds.float())
    )
    among = scale * torch.einsum("bqd,td->tbq", queries, texts).amax(-1)  # (T, B)
    preferred = preference_loss(right, wrong, worse, recipe.damaged_weight)
    seen = clean.vision_model_output.last_hidden_state[:, 0].float()
    taught = learner.taught(seen, texts, batch, teacher, recipe)
    return preferred + F.cross_entropy(among, torch.arange(len(texts))) + taught


def train_blip2(recipe: Blip2Recipe, encoder: Path, output: Path, work: Path, progress: Progress) -> None:
    """Train, or go on from what `work` holds, and write the model to `output`; the CLIP in `encoder` teaches."""
    clip = load_clip(encoder)
    teacher = Teacher(clip, recipe.size, recipe.seed)
    learner, batches = Learner(recipe, clip.text_projection.shape[1]), Batches(recipe)
    trainer = Trainer(learner, recipe.schedule)
    trainer.run(lambda step: blip2_loss(learner, batches(step), teacher, recipe), "blip2", work, progress)
    save_blip2(learner.model, output)


def save_blip2(model: Blip2, folder: Path) -> None:
    """Write float16 safetensors and the tokenizer; the reward loads them in float32."""
    model.half().save_pretrained(folder)
    model.float()
    build_tokenizer().save_pretrained(folder)
