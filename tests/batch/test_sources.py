"""Where media come from: every kind of source gives every medium once, in order, with its prompt and columns."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.media import archive, clip, encoded, folder
from visalign.batch.captions import Captions, own_prompt
from visalign.batch.item import Item
from visalign.batch.sources import check_paths, in_order, items, pick
from visalign.types import InputError, Prompts


def names(*paths):
    return [item.name.rpartition("/")[2] for item in items([str(p) for p in paths])]


def test_a_folder_is_walked_in_order_without_hidden_and_other_files(tmp_path):
    folder(tmp_path / "b", 2)
    folder(tmp_path / "a", 1, start=7)
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    (tmp_path / "b" / "._00000.png").write_bytes(b"a resource fork")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(encoded(9))
    assert names(tmp_path) == ["00007.png", "00000.png", "00001.png"]


def test_links_to_folders_are_followed_and_loops_are_told(tmp_path):
    folder(tmp_path / "elsewhere", 1)
    inner = tmp_path / "in" / "deep"
    inner.mkdir(parents=True)
    os.symlink(tmp_path / "elsewhere", inner / "linked")
    os.symlink(tmp_path / "in", inner / "loop")
    found = {item.name.rpartition("deep/")[2]: item.error for item in items([str(tmp_path / "in")])}
    assert found == {"linked/00000.png": "", "loop": "symlink loop: it leads back to a folder above it"}


def test_order_is_by_bytes_and_of_any_length():
    given = [f"{i * 7919 % 5000:04d}" for i in range(5000)]
    assert list(in_order(given)) == sorted(given)
    assert list(in_order(["\udce9.png", "b"])) == ["b", "\udce9.png"]


def test_globs_match_files_tables_archives_and_folders(tmp_path):
    folder(tmp_path / "x1", 2)
    folder(tmp_path / "x2", 1, start=5)
    archive(tmp_path / "x3.tar", {"0.png": encoded(3)})
    (tmp_path / "x4.txt").write_text("no")
    assert names(f"{tmp_path}/x*") == ["00000.png", "00001.png", "00005.png", "0.png"]
    assert names(f"{tmp_path}/**/*.png") == ["00000.png", "00001.png", "00005.png"]
    assert names(f"{tmp_path}/x1/0000[1].png") == ["00001.png"]
    with pytest.raises(InputError, match="nothing matches"):
        names(f"{tmp_path}/none*.png")


def test_a_name_with_brackets_is_no_pattern_when_it_exists(tmp_path):
    (tmp_path / "a[1].png").write_bytes(encoded(0))
    assert names(tmp_path / "a[1].png") == ["a[1].png"]


def test_paths_that_are_nothing_are_refused_at_once():
    with pytest.raises(InputError, match="does not exist"):
        check_paths(["no_such_thing"])
    with pytest.raises(InputError, match="give what to score"):
        check_paths([])


ROWS = [{"file_name": "a.png", "prompt": " a cat ", "seed": 3}, {"file_name": "sub/b.png", "prompt": "", "seed": 4}]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_tables_name_files_below_them_with_prompt_and_columns(tmp_path, ending):
    path = tmp_path / f"list.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    elif ending == "csv":
        path.write_text("file_name,prompt,seed\na.png, a cat ,3\nsub/b.png,,4\n")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    first, second = items([str(path)])
    assert (first.path, first.prompt) == (str(tmp_path / "a.png"), "a cat")
    assert (second.path, second.prompt) == (str(tmp_path / "sub/b.png"), None)
    assert int(first.columns["seed"]) == 3


def test_a_table_may_hold_the_bytes_or_the_struct_of_datasets(tmp_path):
    data = encoded(1)
    rows = [
        {"image": {"bytes": data, "path": "x.jpg"}, "text": "a"},
        {"image": {"bytes": None, "path": "b.png"}, "text": "b"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    first, second = items([str(tmp_path / "list.parquet")])
    assert (first.data, first.prompt, first.suffix) == (data, "a", "")
    assert second.path == str(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n', "has no column file_name"),
        ('{"file_name": "a.png"}\n{"file_name"\n', "line 2"),
        ("[1]\n", "not an object"),
    ],
)
def test_a_torn_table_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "list.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        names(tmp_path / "list.jsonl")


def test_a_row_without_a_file_is_listed(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": null}\n')
    assert [bool(item.error) for item in items([str(tmp_path / "list.jsonl")])] == [False, True]


MEMBERS = {
    "s/000.png": encoded(0), "s/000.txt": b"a cat", "s/000.json": b'{"seed": 1, "prompt": "not this"}',
    "s/001.png": encoded(1), "s/001.json": b'{"seed": 2, "caption": "a dog"}',
    "s/002.mp4": clip(2), "s/003.cls": b"7",
}  # fmt: skip


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")])
def test_archives_give_samples_with_text_and_columns(tmp_path, name, mode):
    found = list(items([str(archive(tmp_path / name, MEMBERS, mode))]))
    assert [f.name.rpartition("/")[2] for f in found] == ["000.png", "001.png", "002.mp4"]
    assert [f.prompt for f in found] == ["a cat", "a dog", None]
    assert [f.columns.get("seed") for f in found] == [1, 2, None]
    assert [f.part(0, f.size()) for f in found] == [MEMBERS[f"s/{n}"] for n in ("000.png", "001.png", "002.mp4")]
    assert all((f.data is None) == (mode == "w") for f in found)


def test_names_with_dots_keep_their_own_text(tmp_path):
    members = {"x_0.5.png": encoded(0), "x_0.5.txt": b"half", "x_0.7.png": encoded(1), "x_0.json": b'{"n": 1}'}
    first, second = items([str(archive(tmp_path / "a.tar", members))])
    assert (first.prompt, first.columns, second.prompt, second.columns) == ("half", {"n": 1}, None, {"n": 1})


def test_a_torn_archive_gives_what_it_has_and_says_so(tmp_path):
    path = archive(tmp_path / "a.tar", {"0.png": encoded(0), "1.png": encoded(1, size=64)})
    whole = path.read_bytes()
    path.write_bytes(whole[: 512 * 6])
    *good, last = items([str(path)])
    assert good[0].name.endswith("0.png")
    assert last.error.startswith("truncated: the archive")
    (tmp_path / "b.tar").write_bytes(b"no archive at all" * 99)
    (only,) = items([str(tmp_path / "b.tar")])
    assert only.error.startswith("truncated")


def test_names_in_archives_never_become_paths(tmp_path):
    path = archive(tmp_path / "a.tar", {"../../evil.png": encoded(0), "/abs.png": encoded(1)})
    assert all(item.path == str(path) for item in items([str(path)]))


def test_rows_are_found_again_by_number_and_name(tmp_path):
    folder(tmp_path / "x", 5)
    paths = [str(tmp_path / "x")]
    wanted = {3: f"{tmp_path}/x/00003.png", 1: f"{tmp_path}/x/00001.png", 2: "another name"}
    assert [row for row, _ in pick(paths, wanted)] == [1, 3]


def item(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return Item(str(tmp_path / name), str(tmp_path / name))


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ({"prompt": "a cat"}, "a cat"),
        ({"Description": "a dog"}, "a dog"),
        ({"parameters": "a cow\nin a field\nNegative prompt: blur\nSteps: 20"}, "a cow\nin a field"),
        ({"parameters": "a hen\nSteps: 20, Seed: 1"}, "a hen"),
        ({"prompt": '{"3": {"class_type": "KSampler"}}', "parameters": "a pig"}, "a pig"),
        ({"prompt": '"7"'}, "7"),
        ({"prompt": "first", "Description": "second"}, "first"),
        ({"other": "x"}, None),
    ],
)
def test_png_chunks_hold_prompts(tmp_path, chunks, expected):
    assert own_prompt(item(tmp_path, "a.png", encoded(0, **chunks)), is_png=True) == expected


def test_the_text_beside_comes_before_the_chunks(tmp_path):
    found = item(tmp_path, "a.png", encoded(0, prompt="in the chunk"))
    (tmp_path / "a.txt").write_text("\ufeffbeside\n", encoding="utf-8")
    assert own_prompt(found, is_png=True) == "beside"


def test_a_table_of_prompts_by_file_takes_paths_below_the_folder_and_bare_names(tmp_path):
    (tmp_path / "p.jsonl").write_text(
        '{"file": "sub/a.png", "prompt": "one", "tag": "x"}\n{"file": "./b.png", "prompt": "two"}\n'
    )
    captions = Captions(tmp_path / "p.jsonl", None)
    first = captions.by_file(Item("photos/sub/a.png", "photos/sub/a.png"), ["photos"])
    assert (first.prompt, first.columns) == ("one", {"tag": "x"})
    assert captions.by_file(Item("photos/deep/b.png", "x"), ["photos"]).prompt == "two"
    assert captions.by_file(Item("photos/c.png", "x"), ["photos"]).prompt is None
    assert captions.by_file(Item("b.png", "b.png", prompt="its own"), []).prompt == "its own"


def test_a_table_of_prompts_without_files_gives_columns_by_prompt():
    captions = Captions("shapes/held_out", None)
    prompt = next(iter(Captions.__init__.__globals__["read_prompts"]("shapes/held_out")))
    assert sorted(captions.columns(prompt, {})) == ["exclude", "include", "tag"]
    assert captions.columns("something else", {"a": 1}) == {"a": 1}
    assert Captions(Prompts(("a",), ({"n": 1},)), None).columns("a", {"n": 2}) == {"n": 2}
