"""Train the denoiser and both text towers as a rectified flow on latents that were encoded once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from visalign.shapes import prompts
from visalign.shapes.attention import CountedNullAttention, install, set_null_count
from visalign.shapes.autoencoder import Progress, encode, one_cycle
from visalign.shapes.descent import descend, follow, optimizer_tensors, restore_optimizers, write_state
from visalign.shapes.models import MAX_TOKENS, Pipeline
from visalign.shapes.recipe import Recipe, StageRecipe
from visalign.shapes.render import render
from visalign.shapes.scenes import CATEGORIES, Corruption, Scene, corrupt, describe, place

# Two objects have more to get right than one, so they come twice as often.
_WEIGHTS = (1, 2, 2, 1, 2, 2)
_CHUNK = 2048
_MOST_NULLS = 256.0

Denoiser = Callable[..., Any]
"""The transformer, compiled or not."""
Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]
"""`embed` of some weights, compiled or not."""


@dataclass(frozen=True)
class Examples:
    """Latents (N, C, h, w) float32 and the tokens (N, 12) of the captions they are shown with."""

    latents: Tensor
    tokens: Tensor


class Weights(nn.Module):
    """What flow training changes: the denoiser and the text towers."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.transformer = pipeline.transformer
        self.text_encoder = pipeline.text_encoder
        self.text_encoder_2 = pipeline.text_encoder_2


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> Tensor:
    """Token ids (B, 12), as the pipeline makes them."""
    batch = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return batch.input_ids


def draw_examples(count: int, rng: Random, rates: Corruption) -> tuple[list[str], list[Scene]]:
    """Captions, none of them held out, and scenes that show what is left of them after corruption."""
    held_out = {row["prompt"] for row in prompts("held_out")}
    captions: list[str] = []
    scenes: list[Scene] = []
    while len(captions) < count:
        description = describe(rng.choices(CATEGORIES, _WEIGHTS)[0], rng)
        if description.caption in held_out:
            continue
        captions.append(description.caption)
        scenes.append(place(corrupt(description, rng, rates), rng))
    return captions, scenes


def make_examples(pipeline: Pipeline, recipe: Recipe, stage: StageRecipe, seed: str) -> Examples:
    """Render and encode the scenes of one stage."""
    rng = Random(seed)
    rates = Corruption(count=stage.count, relation=stage.relation, swap=stage.swap, presence=stage.presence)
    captions, scenes = draw_examples(recipe.scenes, rng, rates)
    vae = pipeline.vae.to(memory_format=torch.channels_last)
    starts = range(0, len(scenes), _CHUNK)
    drawn = (render(scenes[i : i + _CHUNK], recipe.size, seed=rng.getrandbits(62)) for i in starts)
    latents = torch.cat([encode(vae, pixels, recipe.autocast) for pixels in drawn])
    return Examples(latents, tokenize(pipeline.tokenizer, captions))


def embed(weights: Weights, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What the pipeline's `encode_prompt` makes of tokens, with one zero token in place of its many.

    Returns:
        Sequence (B, 13, joint) and pooled (B, 2 * projection) embeddings.
    """
    outputs = [encoder(tokens, output_hidden_states=True) for encoder in (weights.text_encoder, weights.text_encoder_2)]
    words = torch.cat([o.hidden_states[-2] for o in outputs], dim=-1)
    return nn.functional.pad(words, (0, 0, 0, 1)), torch.cat([o.text_embeds for o in outputs], dim=-1)


def flow_loss(
    encoder: Encoder, denoiser: Denoiser, latents: Tensor, tokens: Tensor, generator: torch.Generator
) -> Tensor:
    """Squared error of the velocity ε − x0 at noise levels spread evenly, as samplers of few steps visit them."""
    sigma = torch.rand(len(latents), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    s = sigma[:, None, None, None]
    words, pooled = encoder(tokens)
    velocity = denoiser((1 - s) * latents + s * noise, words, pooled, sigma * 1000).sample
    return nn.functional.mse_loss(velocity.float(), noise - latents)


def make_optimizers(weights: Weights, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest; Muon's steps are scaled to the size of AdamW's."""
    blocks = set(weights.transformer.transformer_blocks.parameters())
    matrices = [p for p in weights.parameters() if p in blocks and p.ndim == 2]
    others = [p for p in weights.parameters() if p.requires_grad and not (p in blocks and p.ndim == 2)]
    return [
        torch.optim.Muon(matrices, lr=0.0, momentum=0.95, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True),
    ]


class FlowTrainer:
    """One stage: a step at a time, with averaged weights, saved and resumed exactly."""

    def __init__(self, pipeline: Pipeline, recipe: Recipe, stage: StageRecipe, seed: int) -> None:
        self.recipe, self.stage = recipe, stage
        self.weights = Weights(pipeline)
        self.average = copy.deepcopy(self.weights).requires_grad_(False)
        self.processor: CountedNullAttention = install(self.weights.transformer)
        self.denoiser: Denoiser = self.weights.transformer
        self.encoder: Encoder = partial(embed, self.weights)
        if recipe.compile:
            self.denoiser, self.encoder = torch.compile(self.denoiser), torch.compile(self.encoder)
        self.generator = torch.Generator().manual_seed(seed)
        self.empty = tokenize(pipeline.tokenizer, [""])
        self.step = 0
        self.optimizers = make_optimizers(self.weights, recipe.weight_decay)

    def train_step(self, examples: Examples) -> float:
        """One update on a batch drawn with replacement; returns the loss."""
        draw = self.generator
        rows = torch.randint(len(examples.latents), (self.recipe.batch,), generator=draw)
        dropped = torch.rand(self.recipe.batch, generator=draw) < self.recipe.caption_dropout
        tokens = torch.where(dropped[:, None], self.empty, examples.tokens[rows])
        few = float(torch.rand((), generator=draw)) ** 2
        set_null_count(self.processor, _MOST_NULLS**few)
        rate = self.stage.learning_rate * one_cycle(self.step, self.stage.steps, self.stage.warmup)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.autocast):
            loss = flow_loss(self.encoder, self.denoiser, examples.latents[rows], tokens, draw)
        value = descend(loss, self.weights, self.optimizers, rate, self.recipe.clip_norm)
        self.step += 1
        follow(self.average, self.weights, self.step, self.stage.ema_decay)
        return value

    def run(self, examples: Examples, label: str, folder: Path, progress: Progress) -> None:
        """Train to the end of the stage, saving every `save_every` steps."""
        while self.step < self.stage.steps:
            loss = self.train_step(examples)
            progress(label, self.step, self.stage.steps, loss)
            if self.step % self.recipe.save_every == 0 or self.step == self.stage.steps:
                self.save(folder)

    def save(self, folder: Path) -> None:
        """Write everything that the next step depends on."""
        tensors = {f"weights.{k}": v for k, v in self.weights.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizers)
        write_state(tensors | {"generator": self.generator.get_state(), "step": torch.tensor(self.step)}, folder)

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote."""
        tensors = load_file(folder / "state.safetensors")
        for name, module in (("weights.", self.weights), ("average.", self.average)):
            module.load_state_dict({k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)})
        restore_optimizers(self.optimizers, tensors)
        self.generator.set_state(tensors["generator"])
        self.step = int(tensors["step"])
