"""A run that is killed goes on: every file exactly once, nothing scored twice, and no torn file is ever read."""

import csv
import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest

from tests.batch.media import broken, encoded, folder
from visalign.batch import score
from visalign.batch.judging import Outcome
from visalign.batch.sinks import Journal, journal_path
from visalign.types import InputError

FILES = 60


def journal(out):
    return [json.loads(line) for line in journal_path(out).read_text().splitlines()[1:]]


def check(out, files, rewards):
    """Every file and reward is there once, with the scores of an undisturbed run, and nothing was judged twice."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert Counter((r["file"], r["reward"]) for r in rows) == {(f, r): 1 for f in files for r in rewards}
    assert [r["row"] for r in rows] == sorted(r["row"] for r in rows)
    lines = journal(out)
    assert max(Counter((o["key"], o["reward"]) for o in lines).values()) == 1
    return rows


def test_a_run_killed_again_and_again_gives_every_file_once(tmp_path):
    assert kills_and_resumes(tmp_path, kills=4, seed=0) >= 1


@pytest.mark.slow
def test_a_hundred_kills_lose_and_duplicate_nothing(tmp_path):
    assert kills_and_resumes(tmp_path, kills=100, seed=1, files=240) >= 1


def run(context, arguments, options, limit=None):
    """Score in a process, with a kill -9 after `limit` seconds; its exit code."""
    process = context.Process(target=score, args=arguments, kwargs=options)
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode


def kills_and_resumes(tmp_path, kills, seed, files=FILES):
    """Kill runs at any time until there were enough, each table that gets done is whole; the number of those."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["visalign.batch", "visalign.rewards.jpeg_size"])
    folder(tmp_path / "x", files)
    broken(tmp_path / "z")
    asked = {"jpeg_size#a": {}, "jpeg_size#b": {"quality": 50}}
    paths, out = [str(tmp_path / "x"), str(tmp_path / "z")], tmp_path / "o.jsonl"
    expected = list(score(paths, asked).rows())
    names = [r["file"] for r in expected if r["reward"] == "jpeg_size#a"]
    start = time.perf_counter()
    assert run(context, (paths, asked), {"out": str(tmp_path / "timed.jsonl"), "batch": 2}) == 0
    whole, rng, fresh, count, done = time.perf_counter() - start, random.Random(seed), False, 0, 0
    while count < kills or not done:
        limit = rng.uniform(0, whole) if count < kills else None
        code = run(context, (paths, asked), {"out": str(out), "batch": 2, "fresh": fresh}, limit)
        assert code in (0, -signal.SIGKILL)
        fresh = code == 0
        if fresh:
            assert check(out, names, list(asked)) == expected
        count, done = count + (not fresh), done + fresh
    return done


def test_the_command_goes_on_after_a_kill(tmp_path):
    folder(tmp_path / "x", 8)
    out = tmp_path / "o.jsonl"
    code = (
        "import os, signal, visalign.batch.sinks as s; from visalign.batch import score\n"
        "append, calls = s.Journal.append, []\n"
        "def dying(self, outcomes):\n"
        "    append(self, outcomes); calls.append(1)\n"
        "    len(calls) == 2 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "s.Journal.append = dying\n"
        f"score({str(tmp_path / 'x')!r}, 'jpeg_size', out={str(out)!r}, batch=2)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (len(journal(out)), out.exists()) == (4, False)
    score(tmp_path / "x", "jpeg_size", out=out, batch=2)
    assert len(journal(out)) == 8
    assert len(check(out, [f"{tmp_path}/x/{i:05d}.png" for i in range(8)], ["jpeg_size"])) == 8


def test_every_torn_end_of_the_journal_is_cut_off(tmp_path):
    folder(tmp_path / "x", 4)
    out = tmp_path / "o.jsonl"
    score(tmp_path / "x", "jpeg_size", out=out)
    whole, table = journal_path(out).read_bytes(), out.read_bytes()
    header = whole.index(b"\n") + 1
    for end in [0, 1, header - 1, header, header + 1, len(whole) - 40, len(whole) - 1]:
        journal_path(out).write_bytes(whole[:end])
        score(tmp_path / "x", "jpeg_size", out=out)
        assert sorted(journal_path(out).read_bytes().splitlines()) == sorted(whole.splitlines())
        assert out.read_bytes() == table


def test_the_same_command_again_scores_nothing_and_gives_the_same_output(tmp_path):
    folder(tmp_path / "x", 3)
    out = tmp_path / "o.csv"
    score(tmp_path / "x", "jpeg_size", out=out)
    before, table = journal_path(out).read_bytes(), out.read_bytes()
    (tmp_path / ".o.csv.tmp").write_text("what a kill left of the output")
    seen = []
    score(tmp_path / "x", "jpeg_size", out=out, progress=seen.append)
    assert (journal_path(out).read_bytes(), out.read_bytes(), seen[-1].scored) == (before, table, 0)
    assert not (tmp_path / ".o.csv.tmp").exists()


def test_new_changed_and_removed_files_are_seen(tmp_path):
    source, out = folder(tmp_path / "x", 3), tmp_path / "o.jsonl"
    score(source, "jpeg_size", out=out)
    (source / "00000.png").unlink()
    (source / "00001.png").write_bytes(encoded(50))
    (source / "00009.png").write_bytes(encoded(51))
    seen = []
    table = score(source, "jpeg_size", out=out, progress=seen.append)
    assert [f.file[-9:] for f in table.files()] == ["00001.png", "00002.png", "00009.png"]
    assert seen[-1].scored == 2


@pytest.mark.parametrize("rewards", ["jpeg_size:quality=80", "jpeg_size,shapes", "shapes"])
def test_other_settings_are_refused_until_fresh(tmp_path, rewards):
    source, out = folder(tmp_path / "x", 2), tmp_path / "o.jsonl"
    score(source, "jpeg_size", out=out)
    with pytest.raises(InputError, match="--fresh"):
        score(source, rewards, out=out)
    score(source, rewards, out=out, fresh=True)
    assert {json.loads(line)["reward"] for line in out.read_text().splitlines()} == {
        r.partition(":")[0] for r in rewards.split(",")
    }


def test_another_prompt_is_scored_anew_beside_the_old(tmp_path):
    source, out = folder(tmp_path / "x", 2), tmp_path / "o.jsonl"
    score(source, "jpeg_size", out=out, prompt="a")
    score(source, "jpeg_size", out=out, prompt="b")
    assert len(journal(out)) == 4
    assert {json.loads(line)["prompt"] for line in out.read_text().splitlines()} == {"b"}


def test_a_journal_without_scores_binds_to_no_settings(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"prompt": "a"}\n')
    for rewards in ("jpeg_size", "shapes"):
        with pytest.raises(InputError, match="has no column"):
            score(tmp_path / "list.jsonl", rewards, out=tmp_path / "o.csv")


def test_a_file_that_is_not_ours_is_not_overwritten(tmp_path):
    source, out = folder(tmp_path / "x", 1), tmp_path / "o.csv"
    out.write_text("my own table")
    with pytest.raises(InputError, match="has no journal"):
        score(source, "jpeg_size", out=out)
    assert out.read_text() == "my own table"
    score(source, "jpeg_size", out=out, fresh=True)


def test_a_damaged_journal_is_told(tmp_path):
    source, out = folder(tmp_path / "x", 2), tmp_path / "o.csv"
    score(source, "jpeg_size", out=out)
    lines = journal_path(out).read_bytes().splitlines(keepends=True)
    journal_path(out).write_bytes(b"".join([lines[0], b"\x00\x01 noise\n", *lines[1:]]))
    with pytest.raises(InputError, match="damaged at line 2"):
        score(source, "jpeg_size", out=out)


def test_a_journal_gives_back_what_was_put_in(tmp_path):
    outcomes = [Outcome("k", "a", -0.5, {"b": 1.5}, "", "x.png"), Outcome("l", "a", error="corrupt: \ud800", file="y")]
    first = Journal(tmp_path / "j", {"a": {"n": 1}})
    first.append(outcomes)
    first.close()
    again = Journal(tmp_path / "j", {"a": {"n": 1}})
    assert list(again.outcomes()) == outcomes
    again.close()


def test_the_three_formats_hold_the_same_rows(tmp_path):
    source = folder(tmp_path / "x", 2)
    (source / "00009.png").write_bytes(b"")
    (source / "00000.txt").write_text('a "quoted", comma\nand line')
    table = score(source, "jpeg_size,shapes")
    for ending in ("csv", "jsonl", "parquet"):
        table.write(tmp_path / f"o.{ending}")
    flat = [r | {"components": json.dumps(r["components"]), "columns": "{}"} for r in table.rows()]
    assert pq.read_table(tmp_path / "o.parquet").to_pylist() == flat
    assert [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()] == list(table.rows())
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = [
            r | {"row": int(r["row"]), "score": float(r["score"]) if r["score"] else None} for r in csv.DictReader(file)
        ]
    assert rows == flat
    assert [(r["row"], r["reward"]) for r in rows] == [(i, n) for i in range(3) for n in ("jpeg_size", "shapes")]
    with pytest.raises(InputError, match=r"\.csv, \.jsonl, \.parquet"):
        table.write(tmp_path / "o.xlsx")


def test_names_that_are_no_utf8_are_written_all_the_same(tmp_path):
    import os

    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(path, "wb") as file:
        file.write(encoded(0))
    score(tmp_path, "jpeg_size", prompt="half \ud800 a pair", out=tmp_path.parent / f"{tmp_path.name}.jsonl")
    row = json.loads((tmp_path.parent / f"{tmp_path.name}.jsonl").read_text())
    assert row["file"].endswith("caf\\xe9.png")
    assert row["prompt"] == "half \\ud800 a pair"
