from __future__ import annotations

from random import Random

import pytest
import torch

from tests.shapes.tiny_judges import CLIP
from visalign.shapes.judges import clip as clips
from visalign.shapes.judges.data import draw_scenes
from visalign.shapes.judges.faults import Samples, unexplained
from visalign.shapes.judges.teaching import Teacher
from visalign.shapes.recipe import AutoencoderRecipe, DenoiserRecipe, Recipe, StageRecipe, TextRecipe
from visalign.shapes.render import render


@pytest.fixture(scope="session")
def samples() -> Samples:
    """Four clean pictures in the place of samples of the base model."""
    descriptions, scenes = draw_scenes(4, Random(0))
    pixels = render(scenes, 64, seed=0)
    return Samples(pixels, tuple(d.metadata() for d in descriptions), unexplained(pixels))


@pytest.fixture(scope="session")
def shaken_clip(tmp_path_factory):
    """Folder of a tiny CLIP none of whose parameters is zero or one, so that a wrong name shows."""
    clip, draw = clips.build_clip(CLIP), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    folder = tmp_path_factory.mktemp("shaken")
    clips.save_clip(clip, CLIP, folder)
    return folder


@pytest.fixture(scope="session")
def teacher(shaken_clip) -> Teacher:
    """What a tiny CLIP teaches."""
    return Teacher(clips.load_clip(shaken_clip), 64, seed=0)


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """Every part of a real recipe at a size that trains in a second."""
    stage = StageRecipe(steps=4, learning_rate=1e-3, warmup=2, ema_decay=0.9)
    return Recipe(
        name="mini",
        seed=5,
        size=16,
        scenes=48,
        batch=8,
        caption_dropout=0.1,
        autocast=False,
        compile=False,
        save_every=2,
        autoencoder=AutoencoderRecipe(
            channels=(8, 8, 16), steps=3, batch=4, learning_rate=1e-3, kl_weight=1e-4, color_weight=0.3
        ),
        text=TextRecipe(widths=(16, 16), layers=(2, 2), heads=2, projection=16),
        denoiser=DenoiserRecipe(layers=2, heads=2, head_dim=16),
        aligned=stage,
        misaligned=stage.model_copy(update={"count": 0.6, "relation": 0.6, "swap": 0.4}),
    )
