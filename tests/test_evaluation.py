"""Evaluation on a real tiny SD3: noise that no batch changes, invalid scores left out, categories as in GenEval."""

import math

import pytest
import torch
from diffusers import DiffusionPipeline

from visalign import shapes
from visalign.config import RewardEntry
from visalign.evaluation import Evaluation, alternating, difference, eval_seeds, evaluate
from visalign.pipelines.pipeline import Pipeline
from visalign.prompts import to_prompts
from visalign.scoring import RewardBank
from visalign.types import Media, Prompts, RunError

PROMPTS = to_prompts(shapes.prompts("held_out")[::30], "held out")
FIXED = {"seed": 7, "num_steps": 2, "guidance_scale": 1.0, "call": {"height": 32, "width": 32}}


def brightness(images, prompts):
    return [sum(image.convert("L").getdata()) / (255 * image.width * image.height) for image in images]


def of_colors_only(images, prompts):
    return [1.0 if "red" in p else None for p in prompts]


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return Pipeline(DiffusionPipeline.from_pretrained(tiny_model[0]))


def bank(*names):
    return RewardBank({name: RewardEntry() for name in names or ("jpeg_size", "tests.test_evaluation:brightness")})


def test_samples_do_not_depend_on_the_batch(pipeline):
    results = [evaluate(pipeline, PROMPTS, bank(), **FIXED, batch=b, keep_images=3) for b in (2, 5)]
    for name, values in results[0].scores.items():
        assert torch.allclose(values, results[1].scores[name], atol=0.02), name
    assert torch.allclose(results[0].media.pixels, results[1].media.pixels, atol=2e-3)


def test_same_call_gives_the_same_bits(pipeline):
    first, second = (evaluate(pipeline, PROMPTS, bank(), **FIXED, batch=3, keep_images=2) for _ in range(2))
    assert torch.equal(first.media.pixels, second.media.pixels)
    assert first.row() == second.row()


def test_kept_samples_are_those_of_plain_diffusers(pipeline):
    found = evaluate(pipeline, PROMPTS, bank(), **FIXED, batch=1, keep_images=2)
    for sample in found.samples():
        noise = [torch.Generator("cpu").manual_seed(sample.seed)]
        plain = pipeline.pipe(
            [sample.prompt], generator=noise, num_inference_steps=2, guidance_scale=1.0, height=32, width=32,
            output_type="pt",
        ).images  # fmt: skip
        assert torch.allclose(sample.media.images, plain, atol=1e-5)


def test_parts_are_kept_and_invalid_scores_are_nan_not_zero(pipeline):
    names = ("shapes", "tests.test_evaluation:of_colors_only")
    found = evaluate(pipeline, PROMPTS, bank(*names), **FIXED, batch=4, keep_images=0)
    assert {"shapes", "shapes/strict", "shapes/graded"} <= set(found.scores)
    red = torch.tensor(["red" in p for p in PROMPTS])
    assert torch.equal(found.scores[names[1]].isnan(), ~red)
    assert found.mean(names[1]) == 1.0
    assert len(found.media) == 0


def test_a_reward_that_judges_nothing_is_an_error(pipeline):
    prompts = Prompts(("a green star",))
    with pytest.raises(RunError, match="could judge none of 1"):
        evaluate(pipeline, prompts, bank("tests.test_evaluation:of_colors_only"), **FIXED, batch=1, keep_images=1)


def of(values, tags=None, name="r"):
    count = len(values)
    columns = tuple({"tag": t} for t in tags) if tags else ()
    prompts = Prompts(tuple(f"p{i}" for i in range(count)), columns)
    kept = alternating(prompts)[:2]
    return Evaluation(
        prompts, tuple(range(count)), {name: torch.tensor(values)}, Media(torch.zeros(2, 1, 3, 4, 4)), kept
    )


def test_overall_is_the_mean_of_the_categories():
    found = of([1.0, 1.0, 0.0, math.nan, 0.5], ["a", "a", "a", "b", "b"])
    assert found.categories("r") == {"a": pytest.approx(2 / 3), "b": 0.5}
    row = found.row()
    assert row["eval/r"] == pytest.approx((2 / 3 + 0.5) / 2)
    assert row["eval/r/a"] == pytest.approx(2 / 3)
    assert row["eval/r/ci"][0] < row["eval/r"] < row["eval/r/ci"][1]
    assert row["prompts"] == 5


def test_without_tags_there_are_no_categories():
    found = of([1.0, 0.0])
    assert set(found.row()) == {"prompts", "eval/r", "eval/r/ci"}
    assert of([1.0]).row()["eval/r/ci"] == [1.0, 1.0]


def test_samples_say_what_was_not_judged():
    first, second = of([1.0, math.nan, 0.0, 2.0]).samples()
    assert (first.prompt, first.seed, first.scores) == ("p0", 0, {"r": 1.0})
    assert (second.prompt, second.scores) == ("p1", {"r": None})


def test_a_subset_in_alternating_order_keeps_the_same_samples():
    prompts = to_prompts(shapes.prompts("held_out"), "held out")
    order = alternating(prompts)
    assert sorted(order) == list(range(len(prompts)))
    subset = prompts.take(order[:60])
    kept = [subset.texts[row] for row in alternating(subset)[:12]]
    assert kept == [prompts.texts[row] for row in order[:12]]
    tags = [c["tag"] for c in subset.columns]
    assert {tags.count(tag) for tag in tags} == {10}


def test_headline_is_the_weighted_sum():
    weighted = RewardBank({"jpeg_size": RewardEntry(weight=0.5)})
    assert of([2.0, 4.0], name="jpeg_size").headline(weighted) == 1.5


def test_seeds_depend_on_the_prompt_alone():
    alone, among = eval_seeds(Prompts(("b",)), 3), eval_seeds(Prompts(("a", "b", "b")), 3)
    assert alone[0] == among[1]
    assert len(set(among)) == 3
    assert eval_seeds(Prompts(("b",)), 4) != alone


def test_difference_pairs_prompts():
    before, after = torch.rand(60, generator=torch.Generator().manual_seed(0)), {}
    after = before + 0.1
    report = difference({"r": before}, {"r": after}, None)["r"]
    assert report["delta"] == pytest.approx(0.1, abs=1e-6)
    assert report["delta_ci"] == pytest.approx([0.1, 0.1], abs=1e-6)
    assert report["win_rate"] == 1.0
    assert report["tuned"] - report["base"] == pytest.approx(0.1, abs=1e-6)
