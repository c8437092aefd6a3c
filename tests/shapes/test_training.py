from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from visalign import shapes
from visalign.shapes.flow import FlowTrainer, draw_examples, make_examples
from visalign.shapes.models import build_pipeline
from visalign.shapes.recipe import Recipe
from visalign.shapes.scenes import Corruption
from visalign.shapes.training import train_recipe

WEIGHTS = (
    "transformer/diffusion_pytorch_model",
    "vae/diffusion_pytorch_model",
    "text_encoder/model",
    "text_encoder_2/model",
)


class Stopped(Exception):
    pass


def stop_at(label: str, step: int):
    def progress(stage: str, done: int, total: int, loss: float) -> None:
        if (stage, done) == (label, step):
            raise Stopped

    return progress


def ignore(stage: str, done: int, total: int, loss: float) -> None:
    pass


@pytest.fixture(scope="module")
def straight(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("straight")
    train_recipe(tiny_recipe, output, resume=False, progress=ignore)
    return output


def assert_same_weights(one: Path, other: Path) -> None:
    for name in WEIGHTS:
        a, b = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_kills_in_every_stage_change_nothing(tiny_recipe: Recipe, straight: Path, tmp_path: Path) -> None:
    for label, step in (("autoencoder", 2), ("aligned", 3), ("misaligned", 1), ("misaligned", 4)):
        with pytest.raises(Stopped):
            train_recipe(tiny_recipe, tmp_path, resume=True, progress=stop_at(label, step))
    train_recipe(tiny_recipe, tmp_path, resume=True, progress=ignore)
    assert_same_weights(straight, tmp_path)


def test_a_finished_folder_holds_all_there_is_to_know(tiny_recipe: Recipe, straight: Path) -> None:
    record = json.loads((straight / "recipe.json").read_text())
    assert Recipe.model_validate(record["recipe"]) == tiny_recipe
    assert 0 <= record["measured"]["8 steps"]["overall"] <= 1
    assert (straight / "sheet.png").exists()
    assert "model_path" in (straight / "README.md").read_text()
    assert not (straight / "training").exists()


def test_an_unfinished_training_is_not_overwritten(tiny_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    with pytest.raises(ValueError, match="holds an unfinished training; go on with resume=True"):
        train_recipe(tiny_recipe, tmp_path, resume=False, progress=ignore)


def test_held_out_captions_are_never_trained_on() -> None:
    from random import Random

    captions, scenes = draw_examples(2000, Random(0), Corruption())
    assert len(captions) == len(scenes) == 2000
    assert not set(captions) & {row["prompt"] for row in shapes.prompts("held_out")}


def test_the_flow_learns(tiny_recipe: Recipe) -> None:
    stage = tiny_recipe.aligned.model_copy(update={"steps": 60, "learning_rate": 3e-3})
    pipeline = build_pipeline(tiny_recipe)
    examples = make_examples(pipeline, tiny_recipe, stage, seed="test")
    trainer = FlowTrainer(pipeline, tiny_recipe, stage, seed=0)
    losses = [trainer.train_step(examples) for _ in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_the_average_follows_the_weights(tiny_recipe: Recipe) -> None:
    pipeline = build_pipeline(tiny_recipe)
    trainer = FlowTrainer(pipeline, tiny_recipe, tiny_recipe.aligned, seed=0)
    examples = make_examples(pipeline, tiny_recipe, tiny_recipe.aligned, seed="test")
    key = "transformer.proj_out.weight"
    expected = trainer.weights.state_dict()[key].clone()
    for decay in (2 / 11, 3 / 12):
        trainer.train_step(examples)
        expected = decay * expected + (1 - decay) * trainer.weights.state_dict()[key]
    assert torch.allclose(trainer.average.state_dict()[key], expected, atol=1e-7)
