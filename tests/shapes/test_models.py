from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from pydantic import ValidationError

from visalign.shapes import MODELS, prompts
from visalign.shapes.attention import install, set_null_count
from visalign.shapes.flow import Weights, embed, tokenize
from visalign.shapes.models import BOS, EOS, PAD, UNK, build_pipeline, build_tokenizer, save_pipeline
from visalign.shapes.recipe import Recipe, load_recipe

CAPTIONS = ["a red circle", "a blue star left of a green square", ""]


@pytest.fixture(scope="module")
def pipeline(tiny_recipe: Recipe) -> StableDiffusion3Pipeline:
    return build_pipeline(tiny_recipe)


def encode(pipeline: StableDiffusion3Pipeline, nulls: int) -> tuple[torch.Tensor, torch.Tensor]:
    embeds = pipeline.encode_prompt(CAPTIONS, None, None, do_classifier_free_guidance=False, max_sequence_length=nulls)
    return embeds[0], embeds[2]


def test_every_prompt_is_in_the_vocabulary_and_short_enough() -> None:
    tokenizer = build_tokenizer()
    for row in [*prompts("train"), *prompts("held_out")]:
        ids = tokenizer(row["prompt"]).input_ids
        assert UNK not in ids
        assert len(ids) <= tokenizer.model_max_length == 12


def test_unknown_words_and_long_prompts_are_taken() -> None:
    ids = tokenize(build_tokenizer(), ["a zebra", "a red circle " * 9])
    assert ids.shape == (2, 12)
    assert ids[0, 0] == BOS
    assert ids[0, 2:5].tolist() == [UNK, EOS, PAD]
    assert ids[1, -1] == EOS


@torch.no_grad()
def test_training_sees_what_encode_prompt_gives(pipeline: StableDiffusion3Pipeline) -> None:
    words, pooled = encode(pipeline, 1)
    trained = embed(Weights(pipeline), tokenize(pipeline.tokenizer, CAPTIONS))
    assert torch.allclose(trained[0], words, atol=1e-6)
    assert torch.allclose(trained[1], pooled, atol=1e-6)


@torch.no_grad()
def test_the_pooled_embedding_is_that_of_the_end_token(pipeline: StableDiffusion3Pipeline) -> None:
    tokens = tokenize(pipeline.tokenizer, CAPTIONS)
    output = pipeline.text_encoder(tokens)
    ends = (tokens == EOS).int().argmax(dim=1)
    states = output.last_hidden_state[torch.arange(3), ends]
    assert torch.allclose(pipeline.text_encoder.text_projection(states), output.text_embeds, atol=1e-6)


@torch.no_grad()
def test_the_third_encoder_is_mute(pipeline: StableDiffusion3Pipeline) -> None:
    words, _ = encode(pipeline, 7)
    assert words.shape == (3, 12 + 7, 32)
    assert words[:, 12:].abs().max() == 0
    absent = StableDiffusion3Pipeline(**pipeline.components | {"text_encoder_3": None, "tokenizer_3": None})
    assert torch.equal(encode(absent, 7)[0], words)


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 12, 256])
def test_one_counted_token_equals_many(tiny_recipe: Recipe, count: int) -> None:
    pipeline = build_pipeline(tiny_recipe)
    inputs = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([900.0, 500.0, 10.0])
    many, pooled = encode(pipeline, count)
    expected = pipeline.transformer(inputs[0], many, pooled, inputs[1]).sample
    set_null_count(install(pipeline.transformer), count)
    counted = pipeline.transformer(inputs[0], encode(pipeline, 1)[0], pooled, inputs[1]).sample
    assert torch.allclose(counted, expected, atol=1e-5)


def test_saved_folders_load_with_no_argument_in_float32(pipeline: StableDiffusion3Pipeline, tmp_path) -> None:
    save_pipeline(pipeline, tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is StableDiffusion3Pipeline
    assert loaded.dtype == torch.float32
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        before, after = pipeline.components[name].state_dict(), loaded.components[name].state_dict()
        for key, value in after.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, before[key].half().float())
    loaded.set_progress_bar_config(disable=True)
    image = loaded("a red circle", num_inference_steps=2, guidance_scale=1.0, output_type="pt").images
    assert image.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("name", MODELS)
def test_every_recipe_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.aligned.count == recipe.aligned.relation == recipe.aligned.swap == recipe.aligned.presence == 0
    assert recipe.misaligned.relation > 0


def test_recipes_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="unknown shapes model 'flux'; write one of sd3, mini"):
        load_recipe("flux")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Recipe.model_validate(load_recipe("mini").model_dump() | {"sizes": 3})
