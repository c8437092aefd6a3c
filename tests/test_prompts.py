"""Prompts from every kind of file, and what is said when a file is wrong."""

import doctest
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from visalign import prompts as module
from visalign.prompts import read_prompts
from visalign.types import InputError, Prompts

ROWS = [{"prompt": "a red circle", "tag": "colors"}, {"prompt": "ein grüner Stern, links", "tag": "position"}]
EXPECTED = Prompts(("a red circle", "ein grüner Stern, links"), ({"tag": "colors"}, {"tag": "position"}))


def write(folder, name, rows):
    path = folder / name
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = [",".join(rows[0]), *(",".join(f'"{v}"' for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.parquet"])
@pytest.mark.parametrize("column", ["prompt", "text", "caption"])
def test_tables_keep_their_columns(tmp_path, name, column):
    rows = [{column: row["prompt"], "tag": row["tag"]} for row in ROWS]
    assert read_prompts(write(tmp_path, name, rows)) == EXPECTED


def test_prompt_goes_before_text_and_caption(tmp_path):
    path = write(tmp_path, "p.jsonl", [{"caption": "c", "text": "t", "prompt": "p"}])
    assert read_prompts(path) == Prompts(("p",), ({"caption": "c", "text": "t"},))


def test_text_file(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa red circle\r\n\r\n  ein Stern  \n".encode())
    assert read_prompts(str(path)).texts == ("a red circle", "ein Stern")


def test_jsonl_with_blank_lines_mark_and_nested_columns(tmp_path):
    path = tmp_path / "p.jsonl"
    row = {"prompt": "a\u2028star", "include": [{"class": "star", "count": 1}]}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n\n")
    assert read_prompts(path) == Prompts(("a\u2028star",), ({"include": row["include"]},))


def test_csv_cells_may_hold_lines(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('prompt,seed\n"two\nlines",3\n', encoding="utf-8")
    assert read_prompts(path) == Prompts(("two\nlines",), ({"seed": "3"},))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_built_in_sets(split):
    prompts = read_prompts(f"shapes/{split}")
    assert len(prompts) > 100
    assert {"tag", "include"} <= set(prompts.columns[0])
    assert "prompt" not in prompts.columns[0]


def test_built_in_sets_are_disjoint():
    assert not set(read_prompts("shapes/train").texts) & set(read_prompts("shapes/held_out").texts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "'p.txt' is empty; give it at least one prompt"),
        ("p.txt", b"\n  \n", "'p.txt' is empty"),
        ("p.txt", "Käse".encode("latin-1"), "'p.txt' is not UTF-8 (invalid continuation byte at byte 1); save it"),
        ("p.jsonl", b"", "'p.jsonl' is empty"),
        (
            "p.jsonl",
            b'{"prompt": "a"}\n\n{"prompt": }\n',
            "'p.jsonl', line 3 is not JSON: Expecting value at column 12",
        ),
        ("p.jsonl", b'{"prompt": "a"}\n["b"]\n', "'p.jsonl', line 2 is ['b'], not an object"),
        ("p.jsonl", b'{"words": "a", "n": 1}', "no column prompt or text or caption; its columns are words, n. Rename"),
        ("p.jsonl", b"{}", "its columns are none"),
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}', "'p.jsonl', row 2: 'prompt' is None, not a text"),
        ("p.jsonl", b'{"prompt": 3}', "row 1: 'prompt' is 3, not a text"),
        ("p.jsonl", b'{"prompt": " "}', "row 1: 'prompt' is ' ', not a text"),
        ("p.csv", b"", "'p.csv' is empty"),
        ("p.csv", b"prompt,n\n", "'p.csv' is empty"),
        ("p.csv", b"prompt,n\na,1\nb, c,2\n", "'p.csv', line 3: not as many cells as the header has; quote commas"),
        ("p.csv", b"prompt,n\na\n", "'p.csv', line 2: not as many cells"),
        ("p.csv", b'prompt\n"a\n', "'p.csv' is not CSV after line 1: unexpected end of data"),
        ("p.parquet", b"PAR1 torn", "'p.parquet' is not a readable parquet file"),
        ("p.json", b"[]", "'p.json' is none of .txt, .jsonl, .csv, .parquet, shapes/train, shapes/held_out"),
    ],
)
def test_wrong_files(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_prompts(name)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["missing.txt", "missing.jsonl", "missing.csv", "missing.parquet"])
def test_missing_files_are_named_with_the_place(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        read_prompts(name)
    assert f"{name!r} does not exist (seen from {str(tmp_path)!r})" in str(caught.value)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "p.txt").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_prompts(tmp_path / "p.txt")


def test_misspelt_built_in_set():
    with pytest.raises(InputError, match="Did you mean 'shapes/train'"):
        read_prompts("shapes/trian")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path, "p.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"needs pyarrow; install it with: pip install 'visalign\[data\]'"):
        read_prompts(path)


def test_examples():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
