"""What scoring costs beside the bare model, and that memory does not grow with the number of files.

    uv run pytest -m benchmark --benchmark-only -s tests/benchmarks/test_scoring.py

Goals: 95 % of the bare reward's throughput at batch 32 for a tower of the size of CLIP-L, and flat memory over
1,000,000 rows. `VISALIGN_BENCH_BATCHES`, `VISALIGN_BENCH_ROUNDS` and `VISALIGN_BENCH_ROWS` make them smaller.
"""

import os
import statistics
import time
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from visalign.batch import score
from visalign.rewards.base import Reward, RewardSpec
from visalign.rewards.preprocess import Preprocess
from visalign.types import Media, Prompts, Scores

pytestmark = pytest.mark.benchmark
BATCH, SIDE = 32, 512
BATCHES = int(os.environ.get("VISALIGN_BENCH_BATCHES", "2"))
ROUNDS = int(os.environ.get("VISALIGN_BENCH_ROUNDS", "3"))
ROWS = int(os.environ.get("VISALIGN_BENCH_ROWS", "1000000"))
GOAL, ROOM = 0.95, 64
"""Share of the bare throughput; MB that memory may grow between a tenth of the rows and all."""


@cache
def tower():
    """The vision tower of CLIP ViT-L/14 with random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14,
        image_size=224, projection_dim=768,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config).eval().requires_grad_(False)


class Large(Reward):
    """The first coordinate of the tower's embedding."""

    spec = RewardSpec(name="large")

    def __init__(self):
        self.preprocess = Preprocess(224)

    def prepare(self, media):
        """224 pixels, cropped."""
        return Media.of_images(self.preprocess.square(media.images))

    def score(self, media, prompts):
        """Of B first frames."""
        return Scores(tower()(self.preprocess(media.images)).image_embeds[:, 0])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEG files as a camera or a model would leave them, all different."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(BATCH * BATCHES):
        small = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=95)
    return folder


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_throughput_beside_the_bare_model(benchmark, photos):
    name = "tests.benchmarks.test_scoring:Large"
    reward, prompts = Large(), Prompts(("",) * BATCH)
    ready = Media(torch.rand(BATCH, 1, 3, 224, 224))

    def bare():
        with torch.no_grad():
            for _ in range(BATCHES):
                reward.score(ready, prompts)

    def ours():
        assert len(score(photos, name, batch=BATCH, device="cpu")) == BATCH * BATCHES

    bare()
    benchmark.pedantic(ours, rounds=1)
    times = [(seconds(bare), seconds(ours)) for _ in range(ROUNDS)]
    share = statistics.median(b for b, _ in times) / statistics.median(o for _, o in times)
    print(f"\nscoring / bare reward: {share:.3f} of the throughput (goal {GOAL})")
    benchmark.extra_info["share"] = share
    assert share > 0


def resident():
    """Memory of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_memory_is_flat_in_the_number_of_rows(benchmark, tmp_path):
    for seed in range(24):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
    with (tmp_path / "list.jsonl").open("w") as file:
        file.writelines(f'{{"file_name": "{i % 24}.png", "prompt": "number {i % 24}"}}\n' for i in range(ROWS))
    seen = []

    def watch(progress):
        seen.append((progress.files, resident()))

    out = tmp_path / "o.csv"
    benchmark.pedantic(lambda: score(tmp_path / "list.jsonl", "jpeg_size", out=out, progress=watch), rounds=1)
    early = max(mb for files, mb in seen if files <= ROWS / 10)
    late = max(max(mb for _, mb in seen), resident())
    print(f"\n{ROWS:,} rows: {early:.0f} MB after a tenth, {late:.0f} MB at most (room {ROOM} MB)")
    benchmark.extra_info |= {"early_mb": early, "late_mb": late}
    assert late - early < ROOM
    with out.open() as file:
        assert sum(1 for _ in file) == ROWS + 1
