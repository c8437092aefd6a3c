"""`shapes/vlm`: a LLaVA of transformers that answers questions about pictures, its eyes taken from `shapes/clip`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from visalign.shapes.autoencoder import Progress
from visalign.shapes.judges.claims import INJECTIONS
from visalign.shapes.judges.clip import Clip, load_clip, normalised
from visalign.shapes.judges.conversations import Batches
from visalign.shapes.judges.damage import damage, draw_damage
from visalign.shapes.judges.data import draw_scenes
from visalign.shapes.judges.faults import training_samples
from visalign.shapes.judges.learning import HERE, Ahead, Place, Trainer, fast
from visalign.shapes.judges.questions import DONE, KEPT, WHOLE
from visalign.shapes.judges.recipes import VlmRecipe
from visalign.shapes.judges.rows import BORDERS, Batch, Branches
from visalign.shapes.judges.teaching import Teacher
from visalign.shapes.judges.towers import eyes_of, picture_processor, speak_up, vision_sizes
from visalign.shapes.judges.words import BOS, END, IMAGE, PAD, TEMPLATE, build_words
from visalign.shapes.render import render

Vlm = Any
"""A LlavaForConditionalGeneration."""

_PICTURES = 256
_QUIET = 0.3
"""Spread of the first logits."""


def vlm_texts(recipe: VlmRecipe) -> list[str]:
    """All wordings that the tokenizer must know."""
    asked = [text for question in recipe.questions.values() for text in (*question.ask, question.answer)]
    return [*recipe.systems, *asked, *INJECTIONS, KEPT, WHOLE, DONE, "there is are exactly the Yes No"]


def build_processor(recipe: VlmRecipe, patch: int) -> LlavaProcessor:
    """Tokenizer, picture sizes and the chat template; a picture becomes one token a patch and the class token."""
    tokenizer = build_words(vlm_texts(recipe), recipe.context)
    return LlavaProcessor(
        picture_processor(recipe.size),
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def build_vlm(recipe: VlmRecipe, clip: Clip, vocabulary: int) -> LlavaForConditionalGeneration:
    """Fresh weights from the recipe's seed, but for the eyes: all layers of the CLIP's vision tower except the last."""
    visual, layers = clip.visual, len(clip.visual.transformer.resblocks) - 1
    sizes = vision_sizes(clip, layers)
    vision = CLIPVisionConfig(**sizes)
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.text.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.text.layers,
        num_attention_heads=recipe.text.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=END,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=(sizes["image_size"] // sizes["patch_size"]) ** 2 + 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",  # the class token has seen the whole picture
        tie_word_embeddings=False,
        dtype="float32",
    )
    torch.manual_seed(recipe.seed)
    vlm = LlavaForConditionalGeneration(config)
    vlm.model.vision_tower.load_state_dict(dict(eyes_of(visual, layers)), strict=False)
    even_out(vlm, recipe)
    speak_up(vlm.model.language_model)
    nn.init.normal_(vlm.lm_head.weight, std=_QUIET * recipe.text.width**-0.5)
    vlm.generation_config.eos_token_id, vlm.generation_config.pad_token_id = END, PAD
    return vlm


@torch.no_grad()
def even_out(vlm: Vlm, recipe: VlmRecipe) -> None:
    """Let the projector start with features of mean 0 and spread 1: a few of the eyes' drown all others."""
    rng = Random(f"{recipe.seed} eyes")
    _, scenes = draw_scenes(_PICTURES, rng)
    kinds, strength = draw_damage(_PICTURES, recipe.damaged, rng.getrandbits(62))
    pixels = damage(render(scenes, recipe.size, rng.getrandbits(62)), kinds, strength, rng.getrandbits(62))
    seen = vlm.model.vision_tower(normalised(pixels), output_hidden_states=True).hidden_states[-1].flatten(0, 1)
    projector = vlm.model.multi_modal_projector
    for linear in (projector.linear_1, projector.linear_2):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    projector.linear_1.weight /= seen.std(0)
    projector.linear_1.bias.copy_(-projector.linear_1.weight @ seen.mean(0))


def save_vlm(vlm: Vlm, processor: LlavaProcessor, folder: Path) -> None:
    """Write float16 safetensors and the processor; the model comes back, and is loaded, in float32."""
    vlm.half().save_pretrained(folder)
    vlm.float()
    processor.save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for part in (values, values["text_config"], values["vision_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_vlm(folder: Path) -> tuple[Vlm, Any]:
    """The model of a folder, frozen, and its processor."""
    vlm = AutoModelForImageTextToText.from_pretrained(folder)
    return vlm.eval().requires_grad_(False), AutoProcessor.from_pretrained(folder)


class Learner(nn.Module):
    """The model, and what reads the meaning of a caption and the verdict on it off its layers while it learns.

    The eyes stay as they are: while the text knows nothing, its gradients would ruin them. What a caption means is
    taught by the CLIP's text tower, because answers alone do not tell for long which words matter. The verdicts, on the
    caption and on whether pictures agree, are asked for where every answer begins, whatever its words: a mark deep
    inside a long answer can then be looked up there, while a mark that has to be found in its own place stays a guess.
    What several pictures show, as the CLIP embeds it, is asked for where every question begins, always as far from the
    pictures: whether two of them agree was not learned at all from answers. How much they have in common, and whether
    that is all, is asked for there and once more where the answer begins, or answers do not look it up.
    """

    def __init__(self, recipe: VlmRecipe, clip: Clip, vocabulary: int) -> None:
        super().__init__()
        self.vlm: Vlm = build_vlm(recipe, clip, vocabulary)
        self.vlm.model.vision_tower.requires_grad_(False)
        self.meaning = nn.Linear(recipe.text.width, clip.text_projection.shape[1])
        self.verdict = nn.Linear(recipe.text.width, 2)
        self.pair = nn.Linear(recipe.text.width, 2 * clip.text_projection.shape[1])
        self.common, self.recalled = nn.Linear(recipe.text.width, 2), nn.Linear(recipe.text.width, 2)


def branch_states(vlm: Vlm, batch: Batch) -> Iterator[tuple[tuple[Tensor, ...], Branches]]:
    """States (N, L, D) after each layer, for each part of the branches.

    Prefixes are read once; branches go on from their keys and values, so that no branch sees another.
    """
    places = (batch.mask.cumsum(dim=1) - 1).clamp_min(0)
    seen = vlm.model(
        input_ids=batch.tokens,
        pixel_values=batch.pixels * 2 - 1,
        attention_mask=batch.mask,
        position_ids=places,
        use_cache=True,
    ).past_key_values
    lengths = batch.mask.sum(dim=1, keepdim=True)
    for part in batch.branches:
        memory = DynamicCache()
        for number, layer in enumerate(seen.layers):
            memory.update(layer.keys.index_select(0, part.rows), layer.values.index_select(0, part.rows), number)
        yield (
            vlm.model.language_model(
                input_ids=part.tokens,
                attention_mask=torch.cat([batch.mask[part.rows], part.mask], dim=1),
                position_ids=lengths[part.rows] + _numbers(part.tokens[0]),
                past_key_values=memory,
                use_cache=True,
                output_hidden_states=True,
            ).hidden_states,
            part,
        )


def vlm_loss(learner: Learner, batch: Batch, teacher: Teacher, recipe: VlmRecipe, compared: float = 0.0) -> Tensor:
    """Weighted cross-entropy of the answers' tokens, and how far off captions are read and judged before them.

    Args:
        learner: the model and its readers.
        batch: the questions.
        teacher: knows what captions mean.
        recipe: weights of the readings.
        compared: weight of what pictures show and have in common.
    """
    losses, weights, meanings, verdicts, comparisons = [], [], [], [], []
    several = compared > 0 and not batch.common.isnan().any()
    pairs = teacher.images(batch.pixels[batch.ends.flatten()]).view(len(batch.ends), -1) if several else None
    with fast(recipe.schedule.autocast, batch.tokens.device.type):
        for states, part in branch_states(learner.vlm, batch):
            learned = part.weights > 0
            logits = learner.vlm.lm_head(states[-1][learned])
            losses.append(F.cross_entropy(logits.float(), part.targets[learned], reduction="none"))
            weights.append(part.weights[learned])
            meanings.append(meaning_losses(learner, states[recipe.meaning_layer], part, teacher))
            verdicts.append(verdict_losses(learner, states[recipe.verdict_layer], part))
            if pairs is not None:
                comparisons.append(
                    comparison_losses(learner, states, part.ends, pairs[part.rows], batch.common[part.rows], recipe)
                )
    answers = torch.cat(losses) @ torch.cat(weights) / torch.cat(weights).sum()
    meaning, verdict = torch.cat(meanings).mean(), torch.cat(verdicts).mean()
    loss = answers + recipe.meaning_weight * meaning + recipe.verdict_weight * verdict
    return loss + compared * torch.cat(comparisons).mean() if comparisons else loss


def meaning_losses(learner: Learner, states: Tensor, part: Branches, teacher: Teacher) -> Tensor:
    """Mean squared error of what is read off states (N, L, D), (A,), for the A questions that hold a caption."""
    asked = [i for i, caption in enumerate(part.captions) if caption]
    if not asked:
        return states.new_empty(0)
    read = learner.meaning(states[asked, part.ends[asked]]).float()
    meant = teacher.texts([part.captions[i] for i in asked])
    return (read - meant).square().mean(1)


def verdict_losses(learner: Learner, states: Tensor, part: Branches) -> Tensor:
    """Cross-entropy of the verdicts that are read off states (N, L, D), one for each that is asked for."""
    judged = learner.verdict(_at(states, part.ends)).float()  # (N, 2)
    known = ~part.verdicts.isnan()
    return F.binary_cross_entropy_with_logits(judged[known], part.verdicts[known], reduction="none")


def comparison_losses(
    learner: Learner, states: tuple[Tensor, ...], ends: Tensor, pairs: Tensor, common: Tensor, recipe: VlmRecipe
) -> Tensor:
    """How far off two pictures are read at the first token of N questions, and their share in common there and at the
    last, (N,).

    Args:
        learner: the model and its readers.
        states: after each layer, (N, L, D) each.
        ends: place of each question's last token, (N,).
        pairs: what the first and the last picture show, (N, 2E).
        common: the share that is the same, (N,).
        recipe: says after which layers.
    """
    read = learner.pair(_levelled(states[recipe.pair_layer][:, 0])).float()
    seen = learner.common(_levelled(states[recipe.common_layer][:, 0])).float()
    recalled = learner.recalled(_levelled(_at(states[recipe.verdict_layer], ends))).float()
    due = torch.stack([common, (common == 1).float()], 1)  # (N, 2)
    wrong = F.binary_cross_entropy_with_logits(torch.cat([seen, recalled], 1), due.repeat(1, 2), reduction="none")
    return wrong.sum(1) / 2 + (read - pairs).square().mean(1)


def _at(states: Tensor, places: Tensor) -> Tensor:
    """The states (N, D) at one place of each row of (N, L, D)."""
    return states[_numbers(places), places]


def _numbers(values: Tensor) -> Tensor:
    return torch.arange(len(values), device=values.device)


def _levelled(states: Tensor) -> Tensor:
    return F.rms_norm(states.float(), states.shape[-1:])


def train_vlm(
    recipe: VlmRecipe, encoder: Path, output: Path, work: Path, progress: Progress, place: Place = HERE
) -> None:
    """Train with the eyes of the CLIP in `encoder`, or go on from what `work` holds, and write to `output`."""
    clip = load_clip(encoder)
    processor = build_processor(recipe, clip.visual.conv1.kernel_size[0])
    tokenizer: PreTrainedTokenizerFast = processor.tokenizer
    learner = Learner(recipe, clip, len(tokenizer)).to(place.device)
    teacher = Teacher(clip.to(place.device), recipe.size, recipe.seed)
    samples = training_samples(recipe.samples, recipe.seed, work)
    # On a GPU, starting one more pass costs more than padding.
    borders = BORDERS if place.device == "cpu" else BORDERS[-1:]
    batches = Batches(recipe, tokenizer, samples, learner.vlm.config.image_seq_length, borders)
    ahead = Ahead(batches, recipe.schedule.steps, place.workers)
    trainer = Trainer(learner, recipe.schedule)

    def loss(step: int) -> Tensor:
        compared = recipe.phases[batches.phase(step)].compared
        return vlm_loss(learner, ahead(step).to(place.device), teacher, recipe, compared)

    trainer.run(loss, "vlm", work, progress)
    save_vlm(learner.vlm.cpu(), processor, output)
