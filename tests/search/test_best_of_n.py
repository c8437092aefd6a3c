"""Best of N is plain sampling with other seeds, and a folder makes every candidate again to the bit."""

import json

import pytest
import torch

from tests.pipelines.cases import controlled
from visalign.config import RewardEntry
from visalign.optimizing import optimize, replay
from visalign.scoring import RewardBank
from visalign.search.base import Problem, run
from visalign.search.best_of_n import BestOfN, BestOfNConfig
from visalign.search.curves import averaged, charts, picture
from visalign.search.record import read_search
from visalign.search.sampler import PipelineSampler
from visalign.search.state import Budget
from visalign.types import InputError, Media, Prompts, RunError


def best_of_n():
    return BestOfN(BestOfNConfig())


def dull(images, prompts):
    """A plain function: no gradient, and no opinion on squares."""
    return [
        None if "squares" in prompt else -float(image.getpixel((0, 0))[0]) for image, prompt in zip(images, prompts)
    ]


DULL = "tests.search.test_best_of_n:dull"


def work(name="sd3", batch=4, active=(0, 1), **limits):
    pipeline, conditioning, num_steps = controlled(name)
    rewards = RewardBank({"jpeg_size": RewardEntry()})
    return Problem(
        PipelineSampler(pipeline, conditioning, num_steps), rewards, Budget(**limits), active, seed=7, batch=batch
    )


@pytest.mark.parametrize("name", ["sd3", "wan", "sd15_euler"])
def test_candidates_are_the_plain_samples_of_the_next_seeds(name):
    problem = work(name, candidates=3)
    states = list(run(best_of_n(), problem))
    assert [s.seeds.tolist() for s in states] == [[7, 8, 7, 8], [9, 9]]
    assert [s.ids.tolist() for s in states] == [[0, 1, 0, 1], [2, 2]]
    sampler = problem.sampler
    plain = sampler.pipeline.rollout(sampler.conditioning.take([0, 0, 1, 1]), [7, 8, 7, 8], sampler.num_steps)
    assert torch.equal(states[0].media.pixels, plain.media.pixels)
    assert states[0].media.fps == plain.media.fps
    said = problem.bank.score(plain.media, sampler.prompts.take([0, 0, 1, 1]))
    assert torch.equal(states[0].values, said.values)


def test_the_ledger_counts_what_the_denoiser_did():
    problem = work(candidates=3)
    calls = []
    problem.sampler.pipeline.pipe.transformer.register_forward_hook(lambda m, a, out: calls.append(len(out[0])))
    list(run(best_of_n(), problem))
    assert problem.ledger.forwards == problem.ledger.model_calls == sum(calls) == 18
    assert (problem.ledger.candidates, problem.ledger.rewards, problem.ledger.batches) == (6, 6, 2)
    assert problem.ledger.seconds > 0


@pytest.mark.parametrize(("limits", "count"), [({"model_calls": 10}, 3), ({"model_calls": 10, "candidates": 2}, 2)])
def test_the_tightest_limit_holds_for_each_prompt(limits, count):
    problem = work(batch=3, **limits)
    states = list(run(best_of_n(), problem))
    assert sum(len(s) for s in states) == 2 * count
    assert int(states[-1].ids.max()) == count - 1


@pytest.fixture
def found(tmp_path):
    pipeline, conditioning, num_steps = controlled("sd3_text")
    result = optimize(
        list(conditioning.prompts), pipeline, {"jpeg_size": 2.0}, budget={"candidates": 5}, judges=["jpeg_size#judge"],
        out=tmp_path / "o", num_steps=num_steps, guidance_scale=1.0, call=conditioning.call, batch=4, seed=3,
    )  # fmt: skip
    return pipeline, result, tmp_path / "o"


def test_the_best_is_the_candidate_of_highest_value(found):
    _, result, folder = found
    lines = read_search(folder).lines
    assert len(lines) == 10
    for prompt in (0, 1):
        own = [line for line in lines if line["prompt"] == prompt]
        assert [line["candidate"] for line in own] == list(range(5))
        assert [line["seed"] for line in own] == list(range(3, 8))
        top = max(own, key=lambda line: line["scores"]["value"])
        assert int(result.outcome.best.ids[prompt]) == top["candidate"]
        assert float(result.outcome.best.values[prompt]) == pytest.approx(top["scores"]["value"])
        assert top["scores"]["value"] == pytest.approx(2 * top["scores"]["jpeg_size"])
        judged = result.outcome.best.components
        assert torch.equal(judged["jpeg_size#judge"], judged["jpeg_size"])


def test_candidates_are_made_again_to_the_bit(found):
    pipeline, result, folder = found
    for prompt in (0, 1):
        again = replay(folder, prompt, pipeline=pipeline)
        assert torch.equal(again.pixels[0], result.media.pixels[prompt])
    first = replay(folder, 1, 0, pipeline=pipeline)
    assert torch.equal(first.pixels[0], result.outcome.first.media.pixels[1])
    with pytest.raises(InputError, match="candidates 0 to 4"):
        replay(folder, 0, 5, pipeline=pipeline)
    with pytest.raises(InputError, match="no prompt 2"):
        replay(folder, 2, pipeline=pipeline)
    with pytest.raises(InputError, match="given a loaded pipeline"):
        replay(folder)
    with pytest.raises(InputError, match="holds no search"):
        replay(folder / "best")


def test_a_torn_line_is_left_out(found):
    folder = found[2]
    with (folder / "candidates.jsonl").open("a") as file:
        file.write('{"prompt": 0, "cand')
    assert len(read_search(folder).lines) == 10


def test_the_curve_is_the_running_maximum(found):
    folder = found[2]
    lines = read_search(folder).lines
    curve = json.loads((folder / "curve.json").read_text())["best_of_n"]
    calls = [point["model_calls"] for point in curve]
    assert calls == sorted(set(calls))
    for point in curve:
        best = [
            max(v["scores"]["value"] for v in lines if v["prompt"] == p and v["model_calls"] <= point["model_calls"])
            for p in (0, 1)
        ]
        assert point["value"] == pytest.approx(sum(best) / 2, rel=1e-5)


def test_a_folder_with_a_search_is_not_written_over(found):
    pipeline, _, folder = found
    with pytest.raises(InputError, match="already holds a search"):
        optimize("a", pipeline, "jpeg_size", out=folder, num_steps=1, guidance_scale=1.0)


def test_a_prompt_that_nothing_can_judge_is_an_error():
    pipeline, conditioning, num_steps = controlled("sd3_text")
    how = {"num_steps": num_steps, "guidance_scale": 1.0, "call": conditioning.call, "budget": {"candidates": 1}}
    with pytest.raises(RunError, match="could judge no candidate of the prompt 'two blue squares'"):
        optimize(conditioning.prompts, pipeline, DULL, **how)
    alone = optimize(conditioning.prompts.take([0]), pipeline, DULL, **how)
    assert alone.page is None
    assert [row["name"] for row in alone.table() if row["reward"] == "value"] == ["plain sample", "best_of_n"]


def test_wrong_arguments_are_named():
    pipeline, _, _ = controlled("sd3_text")
    for message, changed in {
        "no reward to maximise": {"rewards": ()},
        "batch is 0": {"batch": 0},
        "compared with itself": {"compare_best_of_n": True},
        "the method needs a name": {"method": {"lr": 1}},
        "Did you mean 'model_calls'": {"budget": {"model_call": 3}},
        "unknown key 'n'": {"method": {"name": "best_of_n", "n": 3}},
    }.items():
        with pytest.raises(InputError, match=message):
            optimize("a", pipeline, **{"rewards": "jpeg_size", **changed})


def test_curves_are_averaged_as_step_functions():
    one = [{"model_calls": 4, "value": 0.0}, {"model_calls": 12, "value": 1.0}]
    two = [{"model_calls": 8, "value": 0.5}, {"model_calls": 16, "value": float("nan")}]
    found = averaged([one, two])
    assert [(p["model_calls"], p["value"]) for p in found] == [(8, 0.25), (12, 0.75), (16, 1.0)]


def test_curves_are_drawn():
    curve = [{"model_calls": 8 * i, "value": i / 10, "r": float("nan")} for i in range(1, 6)]
    plots = charts({"reno": curve, "best_of_n": curve[:1]}, ["value", "r"])
    assert [plot.title for plot in plots] == ["value"]
    image = picture(plots)
    colours = {pixel for _, pixel in image.getcolors(1 << 20)}
    assert {(0x25, 0x63, 0xC9), (255, 255, 255)} <= colours


def test_prompts_may_bring_media_for_replay(found):
    pipeline, result, folder = found
    texts = Prompts(tuple(result.prompts.texts))
    assert isinstance(replay(folder, pipeline=pipeline, prompts=texts), Media)
