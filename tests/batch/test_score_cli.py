"""`visalign score`: exit codes, what it prints, and that nothing is written outside of the given folder."""

import doctest
import itertools
import json
import os
import subprocess
import sys

import pytest

import visalign
from tests.batch.media import archive, broken, encoded, folder
from tests.command import run
from visalign import cli_score
from visalign.batch.table import safe_stem
from visalign.cli_score import line, minimum
from visalign.types import InputError


@pytest.fixture
def source(tmp_path):
    for seed, size in enumerate((12, 24, 36, 60)):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / f"{seed}.png").write_bytes(encoded(seed, size=size, prompt="a cat"))
    return tmp_path / "x"


def test_help_needs_nothing_heavy():
    code = "import sys, visalign.cli_score; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "rich", "PIL", "av", "pydantic", "jinja2", "yaml"}
    assert not heavy & {name.split(".")[0] for name in found.stdout.split()}


def test_a_folder_becomes_a_table_a_page_and_pairs(capsys, source, tmp_path):
    out = tmp_path / "o.jsonl"
    options = ["--gallery", tmp_path / "g.html", "--pairs", tmp_path / "p.jsonl", "--pair-rule", "cross", "--top-n", 1]
    code, printed, _ = run(capsys, "score", source, "--reward", "jpeg_size:quality=80,shapes", "--out", out, *options)
    assert code == 0
    assert "4 files by jpeg_size, shapes" in printed
    assert "4 could not be scored: 4 no column" in printed
    assert "0.png: no column: tag, include; give a table with it (shapes)" in printed
    assert "1 pairs in" in printed
    assert len(out.read_text().splitlines()) == 8
    assert (tmp_path / "g.html").is_file()


def test_bad_files_are_exit_code_zero_and_strict_makes_it_one(capsys, tmp_path):
    expected = broken(tmp_path / "z")
    arguments = [tmp_path / "z", "--reward", "jpeg_size", "--out", tmp_path / "o.csv"]
    code, printed, _ = run(capsys, "score", *arguments)
    assert code == 0
    assert f"{len(expected)} files by jpeg_size; {len(expected) - 1} could not be scored: 4 truncated" in printed
    assert "bomb.png: huge" in printed
    assert run(capsys, "score", *arguments, "--strict")[0] == 1
    good = folder(tmp_path / "good", 1)
    assert run(capsys, "score", good, "--reward", "jpeg_size", "--out", tmp_path / "p.csv", "--strict")[0] == 0


def test_the_best_are_shown_and_copied_with_their_prompts(capsys, source, tmp_path):
    options = ["--top", 2, "--by", "jpeg_size#big", "--min", "jpeg_size#small=-4", "--copy-to", tmp_path / "best"]
    rewards = ["--reward", "jpeg_size#small", "--reward", "jpeg_size#big:direction=incompress"]
    code, printed, _ = run(capsys, "score", source, *rewards, "--out", tmp_path / "o.csv", *options)
    assert code == 0
    assert "2 files copied" in printed
    assert "2 files chosen" in printed
    names = sorted(p.name for p in (tmp_path / "best").iterdir())
    assert names == ["0001_2.png", "0001_2.txt", "0002_1.png", "0002_1.txt"]
    assert (tmp_path / "best" / "0001_2.txt").read_text() == "a cat"
    assert (tmp_path / "best" / "0001_2.png").read_bytes() == (source / "2.png").read_bytes()


def test_no_name_escapes_the_folder_of_copies(capsys, tmp_path):
    evil = {
        f"{name}.png": encoded(i) for i, name in enumerate(("../../up", "/abs", "a/../../b", "..", "c\\..\\d", "x\ny"))
    }
    (tmp_path / "in").mkdir()
    path = archive(tmp_path / "in" / "a.tar", evil)
    best = tmp_path / "deep" / "best"
    before = set(tmp_path.rglob("*"))
    os.makedirs(best)
    for rank, ending in itertools.product(range(1, 7), (".png", ".txt")):  # links that wait for the copies
        os.symlink(tmp_path / "outside", best / f"{rank:04d}_up{ending}")
        os.symlink(tmp_path / "outside", best / f".{rank:04d}_up{ending}.tmp")
    code, *_ = run(
        capsys, "score", path, "--reward", "jpeg_size", "--prompt", "a", "--out", tmp_path / "o.csv", "--copy-to", best
    )
    assert code == 0
    made = {p for p in tmp_path.rglob("*") if p not in before and p.is_file()}
    assert {p.parent for p in made} == {best, tmp_path}
    assert {p.name for p in made if p.parent == tmp_path} == {"o.csv", "o.csv.journal.jsonl"}
    assert [len([p for p in made if p.suffix == e]) for e in (".png", ".txt")] == [len(evil), len(evil)]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.png", "..", ".", "", "/", "a\\..\\b.png", "\0x.png", "é" * 300, "C:evil"]
)
def test_safe_names_are_one_plain_part(name):
    safe = safe_stem(name)
    assert safe not in ("", ".", "..")
    assert os.path.basename(safe) == safe
    assert not set(safe) & set('/\\:\0\n<>"|?*')
    assert len(safe.encode()) <= 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward", "jpeg_sise"], "Did you mean 'jpeg_size'"),
        (["--reward", "jpeg_size", "--judges", "shape"], "Did you mean 'shapes'"),
        (["--reward", "jpeg_size", "--engine", "dask"], "write local or ray"),
        (["--reward", "jpeg_size", "--by", "clip"], "there is no score 'clip'"),
        (["--reward", "jpeg_size", "--min", "jpeg_size"], "--min takes NAME=VALUE"),
        (["--reward", "jpeg_size", "--copy-to", "IN"], "copy to a folder outside"),
        (["--reward", "jpeg_size", "--pairs", "p.csv"], "pairs go to a .jsonl file"),
        (["--reward", "jpeg_size", "--pairs", "p.jsonl", "--pair-rule", "worst"], "Did you mean 'best_worst'"),
        (["--reward", "jpeg_size", "--prompts", "none.jsonl"], "does not exist"),
        (["--reward", "jpeg_size", "--out", "o.xlsx"], "ends in none of"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_two(capsys, source, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    options = [source / "copies" if o == "IN" else o for o in options]
    out = [] if "--out" in options else ["--out", "o.csv"]
    code, printed, err = run(capsys, "score", source, *out, *options)
    assert (code, message in err) == (2, True), err
    assert "Traceback" not in printed + err
    assert not (tmp_path / "o.csv").exists()


def test_missing_paths_and_changed_settings_are_exit_code_two(capsys, source, tmp_path):
    code, _, err = run(capsys, "score", tmp_path / "none", "--reward", "jpeg_size", "--out", tmp_path / "o.csv")
    assert (code, "does not exist" in err) == (2, True)
    assert run(capsys, "score", source, "--reward", "jpeg_size", "--out", tmp_path / "o.csv")[0] == 0
    code, _, err = run(capsys, "score", source, "--reward", "shapes", "--out", tmp_path / "o.csv")
    assert (code, "--fresh" in err) == (2, True)
    assert run(capsys, "score", source, "--reward", "shapes", "--out", tmp_path / "o.csv", "--fresh")[0] == 0


def test_prompts_and_columns_come_from_a_table(capsys, source, tmp_path):
    row = {"prompt": "a cat", "tag": "single_object", "include": [{"class": "circle", "count": 1}], "exclude": []}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "o.jsonl"
    code, printed, _ = run(
        capsys, "score", source, "--reward", "shapes", "--prompts", tmp_path / "p.jsonl", "--out", out
    )
    assert (code, "could not" in printed) == (0, False)
    assert {json.loads(text)["columns"]["tag"] for text in out.read_text().splitlines()} == {"single_object"}


def test_an_interrupt_is_130_and_says_that_the_same_command_goes_on(capsys, source, tmp_path):
    reward = "tests.batch.test_score_cli:interrupted"
    code, _, err = run(capsys, "score", source, "--reward", reward, "--out", tmp_path / "o.csv")
    assert (code, "the same command goes on" in err) == (130, True)


def interrupted(images, prompts):
    raise KeyboardInterrupt


def test_the_function_has_the_same_result_as_the_command(capsys, source, tmp_path):
    run(capsys, "score", source, "--reward", "jpeg_size", "--out", tmp_path / "a.jsonl")
    visalign.score(source, ["jpeg_size"], out=tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()


def test_the_examples_of_the_docstrings_run():
    assert doctest.testmod(cli_score).failed == 0


def test_the_line_of_progress_and_minimum():
    from visalign.batch import Progress

    assert line(Progress(500, 400, 10.0, 2000)).startswith("500 of 2,000 files, 50.0/s, 30 s left, peak memory ")
    assert line(Progress(0, 0, 0.0)).startswith("0 files, 0.0/s, peak memory ")
    assert minimum(["a=b=2"]) == {"a=b": 2.0}
    with pytest.raises(InputError, match="NAME=VALUE"):
        minimum(["0.2"])
