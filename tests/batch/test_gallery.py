"""The gallery: one safe file that a real browser sorts and filters from disk."""

import re
import shutil
import subprocess

import pytest

from tests.batch.media import broken, clip, encoded, folder
from visalign.batch import score
from visalign.batch.gallery import thumbnail
from visalign.batch.item import Item

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is on the PATH")
EVIL = '<script>document.title="hacked"</script>"><img src=x onerror=alert(1)>\'&amp;'


def dom(page, fragment=""):
    """The page as a browser has it after its script ran."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent}/profile", "--dump-dom"]
    found = subprocess.run(
        [BROWSER, *options, f"{page.as_uri()}#{fragment}"], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def shown(text):
    """The files on the page, in order, without the hidden ones."""
    figures = re.findall(r'<figure data-file="([^"]*)"([^>]*)>', text)
    return [name.rpartition("/")[2] for name, rest in figures if " hidden" not in rest]


def pictures(tmp_path, count=4):
    for seed in range(count):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / f"{seed}.png").write_bytes(encoded(seed, size=(20, 36, 28, 12)[seed % 4]))
        (tmp_path / "x" / f"{seed}.txt").write_text("a red cat" if seed % 2 else "a blue cat")
    return tmp_path / "x"


def written(tmp_path, table, **options):
    table.gallery(tmp_path / "page.html", **options)
    return tmp_path / "page.html"


def test_the_page_needs_nothing_else(tmp_path):
    text = written(tmp_path, score(pictures(tmp_path), "jpeg_size")).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", text)
    assert text.count("data:image/webp;base64,") == 4
    assert shown(text) == ["3.png", "0.png", "2.png", "1.png"]  # the best first: small files are good


def test_every_text_is_shown_as_text(tmp_path):
    source = pictures(tmp_path, 1)
    (source / "0.txt").write_text(EVIL)
    text = written(tmp_path, score(source, "jpeg_size#<b>")).read_text()
    assert "<script>document" not in text
    assert "<img src=x" not in text
    assert "<b>jpeg" not in text
    assert "#<b>" not in text
    assert text.count("<script>") == 1
    assert "&lt;script&gt;document" in text


def test_files_that_were_not_judged_are_there_with_their_reason(tmp_path):
    broken(tmp_path / "z")
    text = written(tmp_path, score(tmp_path / "z", "jpeg_size")).read_text()
    assert shown(text)[0] == "good.png"
    assert "huge: more than 64 million pixels" in text
    assert text.count("<figure") == 19


def test_a_large_number_is_cut_to_the_best_and_the_page_says_so(tmp_path):
    text = written(tmp_path, score(pictures(tmp_path), "jpeg_size"), limit=2).read_text()
    assert shown(text) == ["3.png", "0.png"]
    assert "Only 2 of them are on this page" in text
    assert "4 files." in text


def test_two_thousand_cards_are_a_page_of_a_few_megabytes(tmp_path):
    folder(tmp_path / "x", 4, size=16)
    rows = "".join(f'{{"file_name": "x/0000{i % 4}.png", "prompt": "number {i}"}}\n' for i in range(2000))
    (tmp_path / "list.jsonl").write_text(rows)
    page = written(tmp_path, score(tmp_path / "list.jsonl", "jpeg_size"))
    assert page.read_text().count("<figure") == 2000
    assert page.stat().st_size < 8e6


def test_thumbnails_keep_small_pictures_exactly_and_show_videos(tmp_path):
    assert len(thumbnail(Item("a", data=encoded(0, size=1000)))) < 60_000
    assert thumbnail(Item("a", data=clip(0))).startswith("data:image/webp")
    assert thumbnail(Item("a", data=b"no")) == ""


@needs_browser
def test_a_browser_sorts_and_filters_by_the_address(tmp_path):
    source = pictures(tmp_path)
    (source / "4.png").write_bytes(b"")
    (source / "1.txt").write_text(EVIL)
    page = written(tmp_path, score(source, "jpeg_size,jpeg_size#big:direction=incompress"))
    best = ["3.png", "0.png", "2.png", "1.png", "4.png"]
    text = dom(page)
    assert shown(text) == best
    assert "<title>jpeg_size, jpeg_size#big" in text
    assert "5 shown." in text
    assert shown(dom(page, "sort=jpeg_size&order=worst")) == [*best[3::-1], "4.png"]
    assert shown(dom(page, "sort=jpeg_size%23big&filter=blue")) == ["2.png", "0.png"]
    assert shown(dom(page, "filter=cat+jpeg_size%23big%3C1.5")) == ["3.png", "0.png"]


@needs_browser
@pytest.mark.slow
def test_a_browser_sorts_two_thousand_cards(tmp_path):
    folder(tmp_path / "x", 40, size=16)
    rows = "".join(f'{{"file_name": "x/000{i % 40:02d}.png", "prompt": "number {i}"}}\n' for i in range(2000))
    (tmp_path / "list.jsonl").write_text(rows)
    page = written(tmp_path, score(tmp_path / "list.jsonl", "jpeg_size"))
    text = dom(page, "sort=jpeg_size&order=worst&filter=number")
    assert len(shown(text)) == 2000
    values = [float(v) for v in re.findall(r"jpeg_size&quot;: (-[\d.]+)", text)]
    assert values == sorted(values)
