from __future__ import annotations

import json

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline

from visalign.shapes import model_path, prompts
from visalign.shapes.recipe import Recipe
from visalign.shapes.sampling import draw_pictures
from visalign.shapes.verifier import verify

ROWS = prompts("held_out")[::2]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    loaded = DiffusionPipeline.from_pretrained(model_path("sd3"))
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_folder_is_small_and_says_how_it_was_made() -> None:
    folder = model_path("sd3")
    assert sum(f.stat().st_size for f in folder.rglob("*")) <= 12 * 2**20
    record = json.loads((folder / "recipe.json").read_text())
    assert Recipe.model_validate(record["recipe"]).name == "sd3"
    assert (folder / "sheet.png").exists()


def test_the_base_draws_objects_but_is_misaligned(pipeline: StableDiffusion3Pipeline) -> None:
    verdict = verify(draw_pictures(pipeline, [row["prompt"] for row in ROWS], steps=8, seed=0), ROWS)
    means = verdict.by_category()
    assert 0.3 <= means["overall"] <= 0.6
    assert min(means["single_object"], means["colors"]) >= 0.6
    assert max(means["position"], means["color_attr"]) <= 0.5
    assert float(verdict.graded.mean()) >= 0.6


def test_any_number_of_null_tokens_serves(pipeline: StableDiffusion3Pipeline) -> None:
    """The default call, with 256 of them, draws nearly the same picture as the fast one with 1."""
    images = [
        pipeline(
            "a red star and a blue square",
            num_inference_steps=8,
            guidance_scale=1.0,
            max_sequence_length=count,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        for count in (1, 256)
    ]
    assert float((images[0] - images[1]).abs().mean()) < 0.02
