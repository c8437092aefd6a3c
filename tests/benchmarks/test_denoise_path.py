"""What control costs: ratios of medians, measured in turn (`uv run pytest -m benchmark --benchmark-only -s`).

Goals: a rollout within 3 % of the bare pipeline, a whole-trajectory replay within 5 % of T bare forward and backward
passes of the denoiser.
"""

import os
import statistics
import time

import pytest
import torch

from visalign import load_pipeline
from visalign.config import LoraConfig
from visalign.pipelines.pipeline import Pipeline
from visalign.policy import Policy
from visalign.prompts import read_prompts
from visalign.types import Conditioning

pytestmark = pytest.mark.benchmark
STEPS, ROWS = 8, 32
ROUNDS = int(os.environ.get("VISALIGN_BENCH_ROUNDS", "9"))


def ratio(ours, bare):
    """Median time of `ours` over that of `bare`, taken in turn after one warm-up each."""
    times = {ours: [], bare: []}
    for function in (ours, bare):
        function()
    for _ in range(ROUNDS):
        for function, kept in times.items():
            start = time.perf_counter()
            function()
            kept.append(time.perf_counter() - start)
    return statistics.median(times[ours]) / statistics.median(times[bare])


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline("shapes/sd3")


@pytest.fixture(scope="module")
def conditioning():
    return Conditioning(read_prompts("shapes/train").take(range(8)).repeat(ROWS // 8))


def report(benchmark, name, value, goal):
    print(f"\n{name}: {value:.3f} (goal {goal})")
    benchmark.extra_info[name] = value
    return value


def test_rollout_against_the_bare_pipeline(benchmark, pipeline: Pipeline, conditioning):
    seeds = list(range(ROWS))

    def bare():
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        call = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "pt"}
        return pipeline.pipe(list(conditioning.prompts), generator=generators, **call).images

    def tapped():
        with torch.no_grad():
            return pipeline.rollout(conditioning, seeds, STEPS).media

    benchmark.pedantic(tapped, rounds=1)
    assert report(benchmark, "rollout / bare pipeline", ratio(tapped, bare), 1.03) > 0


def test_replay_against_bare_forward_and_backward_passes(benchmark, pipeline: Pipeline, conditioning):
    policy = Policy(pipeline.denoisers, LoraConfig(), pipeline.family.lora_targets, seed=0)
    states, inputs = {}, []

    def record(call):
        states[call.index] = call.loop
        return call.default()

    transformer = pipeline.denoisers["transformer"]
    hook = transformer.register_forward_pre_hook(lambda _, args, kwargs: inputs.append(kwargs), with_kwargs=True)
    with torch.no_grad():
        pipeline.rollout(conditioning, list(range(ROWS)), STEPS, record, decode=False)
    hook.remove()

    def clear():
        for parameter in policy.parameters.values():
            parameter.grad = None

    def bare():
        for kwargs in inputs:
            transformer(**kwargs)[0].square().mean().backward()
        clear()

    def replayed():
        pipeline.replay(conditioning, states, STEPS, lambda call: call.output.square().mean().backward())
        clear()

    benchmark.pedantic(replayed, rounds=1)
    assert report(benchmark, "replay / bare passes", ratio(replayed, bare), 1.05) > 0
