"""Scoring in this process: the right number for every file, whatever the batch, once for each content."""

import importlib.util
import json
import os
import random

import pytest
import torch

from tests.batch.media import archive, broken, clip, encoded, folder, scored
from visalign.batch import score
from visalign.batch.engine import MAX_HELD, Buckets, Ready, decoders
from visalign.batch.identifying import canonical, key_of
from visalign.batch.item import Item
from visalign.batch.judging import Judge, Work
from visalign.media_io import read_media
from visalign.rewards.base import Reward, RewardSpec
from visalign.rewards.jpeg_size import JpegSize
from visalign.rewards.lifting import Lifted
from visalign.types import InputError, Media, Prompts, RunError, Scores

CALLS = []


def counted(images, prompts):
    """How bright each image is; notes every call."""
    CALLS.append([(image.tobytes(), prompt) for image, prompt in zip(images, prompts)])
    return [sum(image.convert("L").resize((1, 1)).getpixel((0, 0)) for _ in [0]) / 255 for image in images]


def failing(images, prompts):
    raise KeyError("of the reward")


def patchy(images, prompts):
    """None, not a number, and one, by the width."""
    return [{24: None, 25: float("nan")}.get(image.width, 1.0) for image in images]


class Square(Reward):
    """Mean of an image squeezed to 8×8 beforehand; refuses any other size, so it shows that `prepare` was called."""

    spec = RewardSpec(name="square")

    def prepare(self, media):
        """To 8×8."""
        return Media.of_images(torch.nn.functional.interpolate(media.images, (8, 8)))

    def score(self, media, prompts):
        """The mean."""
        assert media.pixels.shape[-2:] == (8, 8)
        return Scores(media.pixels.mean((1, 2, 3, 4)))


class FilmOnly(Reward):
    """Counts the frames of videos."""

    spec = RewardSpec(name="film", media=("video",))

    def score(self, media, prompts):
        """The number of frames."""
        return Scores(torch.full((len(media),), float(media.pixels.shape[1])))


class Rival(Reward):
    """Compares."""

    spec = RewardSpec(name="rival", kind="pairwise")

    def score(self, media, prompts):
        """Nothing."""
        return Scores(torch.zeros(len(media)))


HERE = "tests.batch.test_engine"


@pytest.fixture(autouse=True)
def _no_calls():
    CALLS.clear()


def bare(path):
    media = read_media(path)
    return float(JpegSize().score(media, Prompts(("",))).values[0])


def test_scores_equal_the_bare_reward_whatever_the_batch_and_size(tmp_path):
    for size in (16, 24, 40):
        folder(tmp_path / "x" / str(size), 5, size, start=size)
    expected = {p.name: bare(p) for p in (tmp_path / "x").rglob("*.png")}
    for batch in (1, 3, 32):
        assert scored(score(tmp_path / "x", "jpeg_size", batch=batch)) == expected


def test_identical_content_with_the_same_prompt_is_scored_once(tmp_path):
    folder(tmp_path / "x", 3)
    folder(tmp_path / "y", 3)
    table = score([tmp_path / "x", tmp_path / "y"], f"{HERE}:counted", prompt="a")
    assert len(table) == 6
    assert sum(map(len, CALLS)) == 3
    values = [f.values[f"{HERE}:counted"] for f in table.files()]
    assert values[:3] == values[3:]


def test_another_prompt_or_column_is_another_judgement(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(0))
    rows = [{"file_name": "a.png", "prompt": p, "n": n} for p, n in (("x", 1), ("y", 1), ("x", 2), ("x", 1))]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert len(score(tmp_path / "list.jsonl", f"{HERE}:counted")) == 4
    assert sum(map(len, CALLS)) == 3


def test_a_key_holds_content_prompt_and_columns():
    keys = {key_of(c, p, canonical(k)) for c in "ab" for p in (None, "", "x") for k in ({}, {"n": 1}, {"n": b"1"})}
    assert len(keys) == 18


def test_bad_files_are_listed_and_the_rest_goes_on(tmp_path):
    expected = broken(tmp_path / "x")
    table = score(tmp_path / "x", "jpeg_size")
    found = {f.file.rpartition("/")[2]: f.error.partition(":")[0] for f in table.files()}
    assert found == expected
    assert [f.file.rpartition("/")[2] for f in table.files() if f.values] == ["good.png"]
    assert table.failures().total() == len(expected) - 1
    assert table.failures()["truncated"] == 4


def test_a_reward_that_cannot_judge_a_file_gives_no_number(tmp_path):
    for seed, size in enumerate((24, 25, 26)):
        (tmp_path / f"{size}.png").write_bytes(encoded(seed, size=size))
    files = list(score(tmp_path, f"{HERE}:patchy,jpeg_size", prompt="a").files())
    assert [f.values.get(f"{HERE}:patchy") for f in files] == [None, None, 1.0]
    assert [f.error.partition(":")[0] for f in files] == ["not judged", "not finite", ""]
    assert all("jpeg_size" in f.values for f in files)


def test_a_prompt_or_column_that_is_missing_is_a_reason_for_that_reward_only(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(0))
    (file,) = score(tmp_path, "shapes,jpeg_size").files()
    assert file.outcomes[0].error.startswith("no prompt")
    assert "jpeg_size" in file.values
    (file,) = score(tmp_path, "shapes", prompt="a red circle").files()
    assert file.error == "no column: tag, include; give a table with it"
    (file,) = score(tmp_path, f"{HERE}:counted", prompt="").files()
    assert file.values


def test_prompts_come_in_order_table_beside_chunk_fallback(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.png").write_bytes(encoded(ord(name), **({"prompt": "chunk"} if name != "d" else {})))
    (tmp_path / "a.txt").write_text("beside")
    (tmp_path / "b.txt").write_text("beside")
    table = score(tmp_path, "jpeg_size", prompts={"a.png": "table"}, prompt="all")
    assert [f.prompt for f in table.files()] == ["table", "beside", "chunk", "all"]


def test_columns_join_by_prompt_so_the_verifier_scores_rendered_pictures(tmp_path):
    from visalign.media_io import write_media
    from visalign.shapes.render import render
    from visalign.shapes.scenes import describe, place

    rng, rows = random.Random(0), []
    for number, category in enumerate(("single_object", "colors", "counting")):
        description = describe(category, rng)
        pixels = render([place(description, rng)], 64, seed=number)
        write_media(tmp_path / f"{number}", Media.of_images(pixels), {"prompt": description.caption})
        rows.append(description.metadata())
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    files = list(score(str(tmp_path / "*.png"), "shapes", prompts=tmp_path / "p.jsonl").files())
    assert [f.values["shapes/strict"] for f in files] == [1.0, 1.0, 1.0]


def test_rewards_prepare_files_of_any_size_for_one_batch(tmp_path):
    for seed, size in enumerate((16, 24, 40)):
        (tmp_path / f"{size}.png").write_bytes(encoded(seed, size=size))
    expected = [float(Square().prepare(read_media(tmp_path / f"{s}.png")).pixels.mean()) for s in (16, 24, 40)]
    found = [f.values[f"{HERE}:Square"] for f in score(tmp_path, f"{HERE}:Square").files()]
    assert found == pytest.approx(expected)


def test_image_rewards_see_eight_frames_of_a_video_and_video_rewards_all(tmp_path):
    (tmp_path / "a.mp4").write_bytes(clip(0, frames=20))
    (tmp_path / "b.png").write_bytes(encoded(0))
    film, still = score(tmp_path, f"jpeg_size,{HERE}:Square,{HERE}:FilmOnly").files()
    media = read_media(tmp_path / "a.mp4")
    assert film.values["jpeg_size"] == pytest.approx(float(Lifted(JpegSize()).score(media, Prompts(("",))).values))
    assert film.values[f"{HERE}:FilmOnly"] == 20
    frames = media.pixels[:, [0, 3, 5, 8, 11, 14, 16, 19]]
    assert film.values[f"{HERE}:Square"] == pytest.approx(float(frames.mean()), abs=0.02)
    assert still.outcomes[2].error == "unsupported: this reward judges videos only"


def test_archives_and_tables_score_like_files(tmp_path):
    data = {f"{i:03d}.png": encoded(i) for i in range(4)}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    expected = [bare(tmp_path / name) for name in data]
    for name, mode in (("a.tar", "w"), ("a.tgz", "w:gz")):
        files = score(archive(tmp_path / name, data, mode), "jpeg_size").files()
        assert [f.values["jpeg_size"] for f in files] == expected


def test_a_reward_that_raises_is_named_and_stops_the_run(tmp_path):
    folder(tmp_path, 1)
    with pytest.raises(RunError, match="failing' raised KeyError: 'of the reward'"):
        score(tmp_path, f"{HERE}:failing", prompt="a")


def ready(size, bytes_each=None):
    judge = Judge("jpeg_size", {}, torch.device("cpu"))
    pixels = torch.zeros(1, 1, 3, size, size) if bytes_each is None else torch.empty(bytes_each // 4, device="meta")
    return Ready(
        Work("k", Item("a"), None, {}, ()), judge, Media(pixels.view(1, 1, 1, 1, -1) if bytes_each else pixels)
    )


def test_buckets_hold_a_bounded_number_and_lose_none():
    buckets, out = Buckets(batch=4, limit=10), []
    for size in [s for s in range(1, 12) for _ in range(3)]:
        out += [len(b) for b in buckets.add(ready(size))]
        assert buckets.count <= 10
    out += [len(b) for b in buckets.rest()]
    assert sum(out) == 33
    assert (buckets.count, buckets.bytes) == (0, 0)


def test_buckets_hold_a_bounded_number_of_bytes():
    buckets = Buckets(batch=32, limit=1000)
    due = [b for _ in range(5) for b in buckets.add(ready(0, MAX_HELD // 2))]
    assert [len(b) for b in due] == [3]
    assert buckets.bytes <= MAX_HELD


def test_decoding_threads_use_one_thread_of_torch_and_leave_the_model_its_own():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with decoders(3) as pool:
        assert set(pool.map(lambda _: torch.get_num_threads(), range(6))) == {1}
        assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_progress_counts_files_and_judgements(tmp_path):
    folder(tmp_path, 5)
    seen = []
    score(tmp_path, "jpeg_size,shapes", progress=seen.append)
    assert (seen[-1].files, seen[-1].scored) == (5, 10)
    assert [p.scored for p in seen] == sorted(p.scored for p in seen)


def test_no_media_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="there are no media"):
        score(tmp_path, "jpeg_size")


@pytest.mark.slow
def test_processes_give_the_same_rows_and_score_identical_files_once(tmp_path):
    folder(tmp_path / "x", 30)
    folder(tmp_path / "y", 30)
    broken(tmp_path / "z")
    paths, asked = [tmp_path / "x", tmp_path / "y", tmp_path / "z"], "jpeg_size,shapes"
    one = list(score(paths, asked, prompt="a", batch=2).rows())
    assert list(score(paths, asked, prompt="a", batch=2, nproc=2, out=tmp_path / "o.jsonl").rows()) == one
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl.journal.jsonl").read_text().splitlines()[1:]]
    assert len({(o["key"], o["reward"]) for o in lines}) == len(lines)
    with pytest.raises(InputError, match="Did you mean 'jpeg_size'"):
        score(paths, "jpeg_sise", nproc=2)


# Not by importorskip: what is set for Ray's start is read when it is imported.
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra: pip install 'visalign[ray]'")
@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, os.cpu_count()])
def test_ray_gives_the_same_rows_even_where_actors_hold_every_cpu(tmp_path, nproc):
    folder(tmp_path / "x", 20)
    broken(tmp_path / "z")
    archive(tmp_path / "a.tgz", {"0.png": encoded(99)}, "w:gz")
    paths, asked = [tmp_path / "x", tmp_path / "z", tmp_path / "a.tgz"], "jpeg_size,shapes"
    one = list(score(paths, asked, prompt="a").rows())
    assert list(score(paths, asked, prompt="a", engine="ray", nproc=nproc, out=tmp_path / "o.csv").rows()) == one
    assert not (tmp_path / ".o.csv.ray").exists()
