"""`shapes/hpsv3` and `shapes/videoalign`: a Qwen2-VL with a head at special tokens, from fresh weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.special import log_ndtr
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from visalign.rewards import hpsv3, videoalign
from visalign.rewards.token_head import TokenHead, build_head, filled
from visalign.shapes.autoencoder import Progress
from visalign.shapes.judges.clip import load_clip
from visalign.shapes.judges.damage import damage, draw_damage, vary
from visalign.shapes.judges.data import content, draw_scenes, shown
from visalign.shapes.judges.learning import Trainer, fast
from visalign.shapes.judges.preferences import Batch, Batches, Taught, swapped
from visalign.shapes.judges.recipes import QwenRecipe
from visalign.shapes.judges.teaching import Teacher
from visalign.shapes.judges.towers import speak_up
from visalign.shapes.judges.words import BOS, END, PAD, build_words
from visalign.shapes.render import render
from visalign.shapes.scenes import Scene, drift, place

CHAT = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}"
    "<|vision_start|><|{{ c['type'] }}_pad|><|vision_end|>{% endif %}{% endfor %}{% endfor %}"
)
MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
HEADS = {"hpsv3": hpsv3.HEAD, "videoalign": videoalign.HEAD}
RUBRICS = {"hpsv3": hpsv3.RUBRIC, "videoalign": videoalign.RUBRIC}
_WEIGHTS = "model.safetensors"
FRAMES = 4
_RANGE = 0.04


def words_of(recipe: QwenRecipe) -> PreTrainedTokenizerFast:
    """Knows the rubric, the grammar, and the marks of pictures."""
    words = build_words([RUBRICS[recipe.name]], recipe.context)
    words.add_tokens(list(MARKS), special_tokens=True)
    return words


def save_base(recipe: QwenRecipe, folder: Path) -> None:
    """Write config and processor, as a base model's folder holds them."""
    words = words_of(recipe)
    sizes: dict[str, Any] = {"patch_size": recipe.patch, "merge_size": 1, "temporal_patch_size": 2}
    area = {"shortest_edge": recipe.size**2, "longest_edge": recipe.size**2}
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(size=area, **sizes),
        words,
        Qwen2VLVideoProcessor(size=area, **sizes),
        chat_template=CHAT,
    ).save_pretrained(folder)
    config(recipe, words).save_pretrained(folder)


def config(recipe: QwenRecipe, words: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    """Of the base model; the head's tokens are not counted yet."""
    vision, text = recipe.vision, recipe.text
    part = text.width // text.heads // 2
    numbers: dict[str, Any] = {
        f"{name}_token_id": words.convert_tokens_to_ids(mark)
        for name, mark in zip(("vision_start", "vision_end", "image", "video"), MARKS, strict=True)
    }
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": text.width,
            "intermediate_size": 3 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.heads,
            "max_position_embeddings": recipe.context,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [part - 2 * (part // 3), part // 3, part // 3],
                "rope_theta": 1e4,
            },
            "initializer_range": _RANGE,
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": END,
        },
        vision_config={
            "depth": vision.layers,
            "embed_dim": vision.width,
            "hidden_size": text.width,
            "num_heads": vision.heads,
            "mlp_ratio": 4,
            "patch_size": recipe.patch,
            "spatial_merge_size": 1,
            "temporal_patch_size": 2,
            "initializer_range": _RANGE,
        },
        **numbers,
    )


class Learner(nn.Module):
    """A fresh model with its head, loaded as the reward loads it, and what is read off its last token."""

    def __init__(self, recipe: QwenRecipe, folder: Path, embed: int) -> None:
        super().__init__()
        save_base(recipe, folder)
        head = HEADS[recipe.name]
        sized: Any = Qwen2VLConfig.from_pretrained(folder)
        sized.text_config.vocab_size += len(head.tokens)
        torch.manual_seed(recipe.seed)
        model: Any = Qwen2VLForConditionalGeneration(sized)
        speak_up(model.model.language_model)
        # One number a token for videos: each token has a row of its own.
        top = build_head(recipe.text.width, head, width=len(head.tokens))
        save_weights(model.model.state_dict(), top.state_dict(), folder)
        self.net = TokenHead(str(folder), folder / _WEIGHTS, head, torch.float32)
        self.model: Any = self.net.model.requires_grad_(True)
        self.head = self.net.head.requires_grad_(True)
        self.taught = Taught(recipe.text.width, recipe.text.width, embed)

    def look(self, visuals: Sequence[Tensor], texts: Sequence[str], kind: Literal["image", "video"]) -> Tensor:
        """Mean of each picture's or video's tokens (B, D): eyes that are taught need not wait for the text."""
        given = self.net.inputs(visuals, texts, kind)
        found = (
            self.model.get_image_features(given["pixel_values"], given["image_grid_thw"])
            if kind == "image"
            else self.model.get_video_features(given["pixel_values_videos"], given["video_grid_thw"])
        )
        return torch.stack([tokens.mean(0) for tokens in found.pooler_output])


def save_weights(model: dict[str, Tensor], head: dict[str, Tensor], folder: Path) -> None:
    """Write both parts under the names that rewards read."""
    named = model | {f"rm_head.{name}": tensor for name, tensor in head.items()}
    save_file({name: tensor.detach().contiguous() for name, tensor in named.items()}, folder / _WEIGHTS)


def rivals(pictures: Tensor, step: int, recipe: QwenRecipe) -> Tensor:
    """Pictures (B, ...) that are wrong for each caption: of another pair at first, then of the same one."""
    return pictures.roll(len(pictures) // 2, 0) if step < recipe.easy_steps else swapped(pictures)


def image_loss(learner: Learner, step: int, teacher: Teacher, recipe: QwenRecipe) -> Tensor:
    """HPSv3's: the chance that one of two normal ratings is greater, for the right and for the clean picture."""
    batch = Batches(recipe)(step)
    texts = [filled(RUBRICS[recipe.name], caption) for caption in batch.captions]
    views = (batch.pixels, rivals(batch.pixels, step, recipe), batch.spoilt)
    with fast(recipe.schedule.autocast):
        states = learner.net.states([p for view in views for p in view], texts * len(views), "image").float()
        seen = learner.look(list(batch.pixels), texts, "image").float()
    right, wrong, worse = learner.head(states)[:, 0].chunk(3)  # (B, 2) each
    # A picture with the wrong caption is the rival of the caption and, turned round, of the picture.
    ranked = ranking_loss(right, wrong) + ranking_loss(right, rivals(wrong, step, recipe))
    ranked = ranked + recipe.damaged_weight * ranking_loss(right, worse)
    return ranked + learner.taught(seen, states[: len(texts), 0], batch, teacher, recipe)


def ranking_loss(better: Tensor, worse: Tensor) -> Tensor:
    """−log P(a sample of `better` is greater), of normals by mean and log standard deviation (B, 2) (2508.03789)."""
    spread = (2 * better[:, 1]).exp() + (2 * worse[:, 1]).exp()
    return -log_ndtr((better[:, 0] - worse[:, 0]) / spread.sqrt()).mean()


@dataclass(frozen=True)
class Clips:
    """Videos, (B, F, 3, S, S) each, of captions in pairs that differ in one fact.

    Attributes:
        smooth: objects drift.
        jumpy: they are elsewhere in each frame.
        spoilt: smooth and damaged.
        captions: B texts.
        content: what the first frames show.
    """

    smooth: Tensor
    jumpy: Tensor
    spoilt: Tensor
    captions: tuple[str, ...]
    content: Tensor

    @property
    def first(self) -> Batch:
        """The first frames."""
        return Batch(self.smooth[:, 0], self.spoilt[:, 0], self.captions, self.content)


def draw_clips(recipe: QwenRecipe, step: int) -> Clips:
    """The videos of a step."""
    rng = Random(f"{recipe.seed} {recipe.name} {step}")
    descriptions, scenes = draw_scenes(recipe.schedule.batch, rng)
    smooth = draw_video([drift(scene, FRAMES, rng) for scene in scenes], recipe.size, rng)
    jumpy = draw_video([[place(d, rng) for _ in range(FRAMES)] for d in descriptions], recipe.size, rng)
    kinds, strength = draw_damage(len(scenes), 1.0, rng.getrandbits(62))
    kinds, strength = kinds.repeat_interleave(FRAMES), strength.repeat_interleave(FRAMES)
    spoilt = damage(smooth.flatten(0, 1), kinds, strength, rng.getrandbits(62)).unflatten(0, (-1, FRAMES))
    return Clips(smooth, jumpy, spoilt, tuple(d.caption for d in descriptions), content(shown(scenes)))


def draw_video(scenes: list[list[Scene]], size: int, rng: Random) -> Tensor:
    """Frames (B, F, 3, S, S) of B lists of F scenes; ground and colours are those of a video, not of a frame."""
    ground, look = rng.getrandbits(62), rng.getrandbits(62)
    frames = [vary(render([row[i] for row in scenes], size, ground), look) for i in range(len(scenes[0]))]
    return torch.stack(frames, 1)


def video_loss(learner: Learner, step: int, teacher: Teacher, recipe: QwenRecipe) -> Tensor:
    """Bradley-Terry for each token: quality by damage, motion by smoothness, alignment by the caption."""
    clips = draw_clips(recipe, step)
    texts = [filled(RUBRICS[recipe.name], caption) for caption in clips.captions]
    views = (clips.smooth, rivals(clips.smooth, step, recipe), clips.jumpy, clips.spoilt)
    with fast(recipe.schedule.autocast):
        states = learner.net.states([v for view in views for v in view], texts * len(views), "video").float()
        seen = learner.look(list(clips.smooth), texts, "video").float()
    scores = videoalign.per_token(learner.head(states))  # (4B, 3)
    right, wrong, jumpy, spoilt = scores.chunk(4)
    quality = F.softplus(spoilt[:, 0] - right[:, 0]).mean()
    motion = F.softplus(jumpy[:, 1] - right[:, 1]).mean()
    alignment = F.softplus(wrong[:, 2] - right[:, 2]).mean()
    alignment = alignment + F.softplus(rivals(wrong, step, recipe)[:, 2] - right[:, 2]).mean()
    return (
        alignment
        + recipe.damaged_weight * (quality + motion)
        + learner.taught(seen, states[: len(texts), -1], clips.first, teacher, recipe)
    )


LOSSES = {"hpsv3": image_loss, "videoalign": video_loss}


def train_qwen(recipe: QwenRecipe, encoder: Path, output: Path, work: Path, progress: Progress) -> None:
    """Train, or go on from what `work` holds, and write the model to `output`; the CLIP in `encoder` teaches."""
    clip = load_clip(encoder)
    teacher = Teacher(clip, recipe.size, recipe.seed)
    learner, loss = Learner(recipe, output, clip.text_projection.shape[1]), LOSSES[recipe.name]
    trainer = Trainer(learner, recipe.schedule)
    trainer.run(lambda step: loss(learner, step, teacher, recipe), recipe.name, work, progress)
    model, head = ({k: v.half() for k, v in part.state_dict().items()} for part in (learner.model, learner.head))
    save_weights(model, head, output)
