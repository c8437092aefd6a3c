"""Recipes: everything that decides what a shipped model becomes, read from `configs/shapes/models/NAME.yaml`."""

from __future__ import annotations

from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, Field

from visalign.shapes import MODELS


class Strict(BaseModel):
    """Frozen, and a key that it does not have is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AutoencoderRecipe(Strict):
    """An AutoencoderKL and its training."""

    channels: tuple[int, ...]
    """Width of each level; every level but the last halves the side."""
    latent_channels: int = 4
    steps: int = Field(gt=0)
    batch: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    kl_weight: float = Field(ge=0)
    color_weight: float = Field(ge=0)
    """Pull of the first three latents towards the mean colour of their pixels."""


class TextRecipe(Strict):
    """The two CLIP text towers; both read the same words."""

    widths: tuple[int, int]
    layers: tuple[int, int]
    heads: int
    projection: int


class DenoiserRecipe(Strict):
    """An SD3Transformer2DModel."""

    layers: int
    heads: int
    head_dim: int


class StageRecipe(Strict):
    """One stretch of flow training; rates say how often captions lie (see `scenes.Corruption`)."""

    steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(gt=0)
    ema_decay: float = Field(ge=0, lt=1)
    count: float = 0.0
    relation: float = 0.0
    swap: float = 0.0
    presence: float = 0.0


class Recipe(Strict):
    """How one model is made from nothing."""

    name: str
    seed: int
    size: int
    """Image side in pixels."""
    scenes: int
    """Rendered once and encoded once; each stage has its own set."""
    batch: int
    caption_dropout: float = Field(ge=0, lt=1)
    clip_norm: float = 1.0
    weight_decay: float = 0.01
    autocast: bool
    """Matrix products in bfloat16: eight times faster on CPUs with AMX, slower on others."""
    compile: bool
    """Compile the denoiser: a third faster, needs a C++ compiler."""
    save_every: int = 500
    rounds: int = Field(1, gt=0)
    """How often both flow stages are gone through, each time with new scenes, from what the last round saved."""
    autoencoder: AutoencoderRecipe
    text: TextRecipe
    denoiser: DenoiserRecipe
    aligned: StageRecipe
    """Stage 1, on captions that are true."""
    misaligned: StageRecipe
    """Stage 2, on captions that are not."""


def load_recipe(name: str) -> Recipe:
    """Read the recipe of a shipped model.

    Raises:
        ValueError: no such model, or a key that a recipe does not have.

    Example:
        >>> load_recipe("sd3").size
        64
    """
    if name not in MODELS:
        raise ValueError(f"unknown shapes model {name!r}; write one of {', '.join(MODELS)}")
    text = (resources.files("visalign.configs") / "shapes" / "models" / f"{name}.yaml").read_text(encoding="utf-8")
    return Recipe.model_validate(yaml.safe_load(text))
