"""The report and the card from a made-up run: everything is in one file, and nothing that came in becomes markup."""

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import pytest
import yaml
from PIL import Image

from tests.synthetic_run import write_run
from visalign.card import cell, fence, is_hub_id, snippet, write_card
from visalign.charts import MAX_POINTS, Series, draw, thinned, ticks
from visalign.record import eval_categories, eval_names, read_record
from visalign.report import charts, sample_table, write_report
from visalign.types import InputError

HOSTILE = ' <script>alert("x")</script>'


class Tags(HTMLParser):
    """Start tags with their attributes, in order; complains about what is not closed."""

    VOID = {"meta", "img", "br", "line", "path", "circle", "link"}

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def parse(path):
    page = Tags()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "quickstart", extra=HOSTILE)


@pytest.fixture(scope="module")
def page(run):
    return parse(write_report(run))


def test_page_needs_nothing_from_outside(page):
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe"}
    for _, attributes in page.tags:
        assert "href" not in attributes
        assert attributes.get("src", "data:").startswith("data:")


def test_a_prompt_with_a_script_tag_is_text(page):
    assert HOSTILE.strip() in page.text


def test_headline_has_before_after_and_the_paired_interval(page):
    assert re.search(r"shapes/strict on held-out prompts\s+0\.400 → 0\.655", page.text)
    assert re.search(r"\+0\.25\s+95 % interval \+0\.19 to \+0\.32", page.text)


def test_samples_stand_beside_the_base_with_scores(run, page):
    table = sample_table(read_record(run))
    assert table["steps"] == [0, 10, 20, 30, 40, 60]
    assert len(table["rows"]) == 6
    assert all(len(row["cells"]) == 6 for row in table["rows"])
    assert dict(table["rows"][1]["cells"][0]["scores"])["jpeg_size"] == "not judged"
    assert sum(name == "img" for name, _ in page.tags) == 36


def test_alarms_config_and_environment_are_shown(page):
    for text in ("dark 0.10 → 0.31", "guidance_scale: 1.0", "diffusers", "num_inference_steps=8"):
        assert text in page.text


def test_curves_cover_what_was_logged(run):
    drawn = charts(read_record(run))
    titles = {c.title for plots in drawn.values() for c in plots}
    assert {"shapes", "shapes by category", "reward", "kl", "clip_fraction", "diversity", "loss", "lr"} <= titles
    pixels = next(c for c in drawn["Health"] if c.title == "pixel statistics")
    assert [line.name for line in pixels.lines] == ["dark", "saturation", "high_frequency", "grid"]
    assert all(c.lines[0].band for c in drawn["Held-out prompts"] if "by category" not in c.title)
    assert "Further metrics" not in drawn


def test_a_metric_of_a_method_that_nobody_foresaw_is_drawn(run, tmp_path):
    row = {"kind": "train", "iteration": 1, "margin": 0.3}
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert [c.title for c in charts(read_record(tmp_path))["Further metrics"]] == ["margin"]


def test_an_evaluation_of_fewer_prompts_leaves_cells_empty_and_is_a_line_of_its_own(tmp_path):
    run = write_run(tmp_path / "run", iterations=20, prompts=3)
    scores = run / "samples" / "step_000010" / "scores.json"
    scores.write_text(json.dumps(json.loads(scores.read_text())[::2]))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    fewer = [r | {"prompts": 60} if r["kind"] == "eval" and r["iteration"] == 10 else r for r in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in fewer))
    cells = [row["cells"][1] for row in sample_table(read_record(run))["rows"]]
    assert [cell is None for cell in cells] == [False, True, False]
    chart = charts(read_record(run))["Held-out prompts"][0]
    assert [line.name for line in chart.lines] == ["150 prompts", "60 prompts"]
    parse(write_report(run))


def test_a_run_that_was_killed_still_has_a_report(tmp_path):
    run = write_run(tmp_path / "run", iterations=10, prompts=2, finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "iter')
    assert "The run has not finished" in parse(write_report(run)).text
    (run / "metrics.jsonl").write_text("")
    assert "No evaluation was written" in parse(write_report(run)).text
    assert "No evaluation was written" in write_card(run).read_text()


def test_videos_move_in_the_report(tmp_path):
    run = write_run(tmp_path / "run", iterations=10, prompts=1, video=True)
    table = sample_table(read_record(run))
    data = base64.b64decode(table["rows"][0]["cells"][0]["src"].partition(",")[2])
    with Image.open(BytesIO(data)) as moving:
        assert moving.n_frames == 8
    assert "videos = result.frames" in snippet(read_record(run), "lora")


def test_no_run_is_a_message(tmp_path):
    with pytest.raises(InputError, match=r"config\.yaml is missing"):
        write_report(tmp_path)


def test_card_is_valid_and_holds_the_hostile_prompt_as_text(run):
    text = write_card(run).read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "diffusers", "tags": ["lora", "visalign", "nft"]}
    table, code = body.split("```python")[0], body.split("```python")[1].split("```")[0]
    assert "| shapes/strict | trained | 0.4 [0.34, 0.46] |" in table
    assert "&lt;script&gt;" in body
    assert "<script>" not in body.replace(code, "")
    compile(code, "card", "exec")
    for link in re.findall(r"\]\((samples/[^)]+)\)", body):
        assert (run / link).is_file()


def test_card_names_a_hub_model_as_its_base(run, tmp_path):
    values = yaml.safe_load((run / "config.yaml").read_text()) | {"rewards": {"pick|score": {"weight": 1.0}}}
    values["model"]["name"] = "stabilityai/stable-diffusion-3.5-medium"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    text = write_card(tmp_path).read_text(encoding="utf-8")
    assert "base_model: stabilityai/stable-diffusion-3.5-medium" in text
    assert "pick&#124;score" in text
    assert "from_pretrained('stabilityai/stable-diffusion-3.5-medium'" in text


def test_hub_ids_are_told_from_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "model").mkdir(parents=True)
    assert is_hub_id("black-forest-labs/FLUX.1-dev")
    assert not any(map(is_hub_id, ("shapes/sd3", "my/model", "/models/x", "./x", "plain")))


def test_cells_and_fences_hold_anything():
    assert cell("a\nb | `c` [d](e)") == "a b &#124; &#96;c&#96; &#91;d](e)"
    assert fence("x") == "```"
    assert fence("a ```` b") == "`````"


def test_names_and_categories_of_an_eval_row():
    row = {"kind": "eval", "eval/r": 1, "eval/r/ci": [0, 1], "eval/r/part": 1, "eval/r/part/ci": [0, 1]}
    row |= {"eval/r/counting": 1, "eval/r/part/counting": 1}
    assert eval_names(row) == ["r", "r/part"]
    assert eval_categories(row, "r") == eval_categories(row, "r/part") == ["counting"]


def test_charts_thin_long_series_and_take_single_points():
    points = [(i, float(i)) for i in range(10_000)]
    assert len(thinned(points)) <= MAX_POINTS
    chart = draw("one", [Series("one", [(3, 0.0)], dots=True)])
    assert chart.lines[0].dots[0][2] == "one at 3: 0"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 5e-4), (1e-7, 2e-7), (990, 1010), (0.4, 0.70001)])
def test_ticks_are_few_and_inside(low, high):
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-12 <= t <= high + 1e-12 for t in found)
