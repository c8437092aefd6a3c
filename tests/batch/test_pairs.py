"""Preference pairs from scores: which are made, and that the reader of the methods takes them."""

import itertools
import json

import pytest

from tests.batch.media import archive, encoded
from visalign.batch import score
from visalign.batch.judging import Outcome
from visalign.batch.ledger import FileScores
from visalign.batch.pairs import Choice, best_worst, cross, pareto
from visalign.data import read_pairs
from visalign.types import InputError

SIZES = {"a0": 12, "a1": 24, "a2": 36, "a3": 48, "b0": 20, "b1": 40, "alone": 30}


def files(*values):
    """Files with scores of the rewards r and s; None was not judged."""
    return [
        FileScores(row, f"{row}.png", "p", {}, tuple(Outcome("", n, v) for n, v in zip("rs", pair)))
        for row, pair in enumerate(values)
    ]


def rows(pairs):
    return [(good.row, bad.row) for good, bad in pairs]


def choice(**options):
    return Choice("r", ("r", "s"), **options)


def test_best_with_worst():
    given = files((1, 0), (5, 0), (None, 0), (3, 0))
    assert rows(best_worst(given, choice())) == [(1, 0)]
    assert rows(best_worst(given, choice(min_gap=4.5))) == []
    assert rows(best_worst(files((1, 0), (1, 5)), choice())) == []
    assert rows(best_worst(files((None, 0)), choice())) == []


def test_each_of_the_best_with_each_of_the_worst():
    given = files((0, 0), (1, 0), (2, 0), (3, 0), (4, 0))
    assert rows(cross(given, choice(top_n=2))) == [(4, 1), (4, 0), (3, 1), (3, 0)]
    assert rows(cross(given, choice(top_n=9))) == [(4, 1), (4, 0), (3, 1), (3, 0)]
    assert rows(cross(given, choice(top_n=2, min_gap=3))) == [(4, 1), (4, 0), (3, 0)]
    assert rows(cross(given[:1], choice())) == []


def test_pareto_pairs_are_exactly_the_dominated_ones():
    values = [(r, s) for r in (0.0, 1.0, 2.0) for s in (0.0, 1.0)] + [(None, 1.0)]
    given = files(*values)
    expected = {
        (i, j)
        for (i, a), (j, b) in itertools.permutations(list(enumerate(values))[:-1], 2)
        if a[0] >= b[0] and a[1] >= b[1] and a != b
    }
    assert set(rows(pareto(given, choice()))) == expected
    assert set(rows(pareto(given, choice(min_gap=1.0)))) == {(3, 0), (5, 0), (5, 2)}


def scores(tmp_path, rewards="jpeg_size:direction=incompress"):
    source = tmp_path / "x"
    source.mkdir()
    for seed, (name, size) in enumerate(SIZES.items()):
        (source / f"{name}.png").write_bytes(encoded(seed, size=size))
        (source / f"{name}.txt").write_text({"a": "a cat", "b": "a dog"}.get(name[:-1], "nobody else"))
    return score(source, rewards)


def test_pairs_are_read_by_the_preference_methods(tmp_path):
    table = scores(tmp_path)
    assert table.pairs(tmp_path / "pairs.jsonl") == 2
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    assert pairs.texts == ("a cat", "a dog")
    assert [p.name for p in pairs.chosen] == ["a3.png", "b1.png"]
    assert [p.name for p in pairs.rejected] == ["a0.png", "b0.png"]
    assert pairs.columns[0]["gap"]["jpeg_size"] > 0
    assert pairs.load([0, 1], [True, False], (8, 8)).pixels.shape == (2, 1, 3, 8, 8)
    assert not (tmp_path / "pairs_media").exists()


def test_cross_and_gap_reach_the_file(tmp_path):
    table = scores(tmp_path)
    assert table.pairs(tmp_path / "p.jsonl", "cross", top_n=2) == 4 + 1
    gaps = [json.loads(line)["gap"]["jpeg_size"] for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert table.pairs(tmp_path / "q.jsonl", "cross", top_n=2, min_gap=sorted(gaps)[2]) == 3
    assert table.pairs(tmp_path / "r.jsonl", "pareto") == 6 + 1


def test_media_that_are_not_below_the_list_are_copied_beside_it(tmp_path):
    table = scores(tmp_path)
    out = tmp_path / "lists" / "pairs.jsonl"
    assert table.pairs(out) == 2
    pairs = read_pairs(out)
    assert {p.parent for p in (*pairs.chosen, *pairs.rejected)} == {tmp_path / "lists" / "pairs_media"}
    assert pairs.chosen[0].read_bytes() == (tmp_path / "x" / "a3.png").read_bytes()


def test_pairs_of_an_archive_are_files(tmp_path):
    members = {f"{n}.png": encoded(s, size=k) for s, (n, k) in enumerate(SIZES.items())}
    path = archive(tmp_path / "a.tar", members | {"../a.png": encoded(60, size=60)})
    assert score(path, "jpeg_size:direction=incompress", prompt="a cat").pairs(tmp_path / "p.jsonl") == 1
    (chosen,) = read_pairs(tmp_path / "p.jsonl").chosen
    assert chosen.read_bytes() == encoded(60, size=60)
    assert chosen.parent == tmp_path / "p_media"


def test_columns_that_both_have_are_kept(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(0, size=20))
    (tmp_path / "b.png").write_bytes(encoded(1, size=40))
    rows = [{"file": f"{n}.png", "text": "p", "tag": "colors", "seed": n} for n in "ab"]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    score(tmp_path / "list.jsonl", "jpeg_size").pairs(tmp_path / "p.jsonl")
    (columns,) = read_pairs(tmp_path / "p.jsonl").columns
    assert {k: v for k, v in columns.items() if k != "gap"} == {"tag": "colors"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "best"}, "Did you mean 'best_worst'"),
        ({"top_n": 3}, "belongs to --pair-rule cross"),
        ({"by": "clip"}, "there is no score 'clip'"),
        ({"min_gap": 1e9}, "no two files with one prompt"),
        ({"min_gap": -1}, "a gap of 0 or more"),
    ],
)
def test_wrong_options_are_told(tmp_path, options, message):
    table = scores(tmp_path)
    with pytest.raises(InputError, match=message):
        table.pairs(tmp_path / "p.jsonl", **options)
    assert not list(tmp_path.glob("*p.jsonl*"))
