"""`visalign optimize`: end to end on the built-in model, what it prints and writes, and what it refuses."""

import json

import pytest
import torch

from tests.command import run
from visalign.__main__ import main
from visalign.cli_optimize import SearchProgress, chosen_prompts, read_options, read_rewards
from visalign.media_io import read_media, read_metadata, to_uint8
from visalign.optimizing import replay
from visalign.progress import console
from visalign.types import InputError

RENO = ("--reward", "palette", "--judge", "shapes", "--method", "reno", "--set", "lr=1", "--set", "clip=1")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A few iterations of ReNO on shapes/sd3 beside best-of-N at equal model calls."""
    folder = tmp_path_factory.mktemp("search") / "o"
    arguments = ("optimize", "a red circle", *RENO, "--num-steps", "2", "--candidates", "3", "--compare-best-of-n")
    with pytest.raises(SystemExit) as stop:
        main((*arguments, "--out", str(folder)))
    assert not stop.value.code
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]


def test_reno_climbs_and_keeps_every_iterate(searched):
    found = lines(searched)
    assert [line["parent"] for line in found] == [None, 0, 1]
    assert {line["seed"] for line in found} == {0}
    values = [line["scores"]["value"] for line in found]
    assert max(values[1:]) > values[0]
    result = json.loads((searched / "result.json").read_text())
    assert result["best"][0]["scores"]["value"] == max(values)
    assert "shapes" in result["best"][0]["scores"]


def test_best_of_n_gets_the_same_model_calls(searched):
    spent = json.loads((searched / "result.json").read_text())["spent"]
    reno, plain = spent["reno"], spent["best_of_n"]
    assert reno["model_calls"] == 2 * 8 + 2
    assert 0 <= reno["model_calls"] - plain["model_calls"] < 2
    assert plain["candidates"] == 9
    found = lines(searched / "best_of_n")
    assert found[0]["scores"]["palette"] == pytest.approx(lines(searched)[0]["scores"]["palette"], abs=1e-5)
    curves = json.loads((searched / "curve.json").read_text())
    assert list(curves) == ["reno", "best_of_n"]
    assert curves["reno"][-1]["model_calls"] == 18


def test_iterates_are_made_again_to_the_bit_from_their_noise(searched):
    best = json.loads((searched / "result.json").read_text())["best"][0]
    again = replay(searched)
    shown = to_uint8(read_media(next((searched / "best").glob("000.*"))).pixels[0])
    assert (to_uint8(again.pixels[0]) == shown).all()
    assert torch.equal(replay(searched, 0, best["candidate"]).pixels, again.pixels)
    about = read_metadata(searched / "best" / "000.png")
    assert (about["prompt"], about["candidate"], about["method"]["name"]) == ("a red circle", best["candidate"], "reno")


def test_the_noise_is_what_diffusers_takes_as_latents(searched):
    from diffusers import DiffusionPipeline
    from safetensors.torch import load_file

    from visalign.shapes import model_path

    line = lines(searched)[-1]
    noise = load_file(searched / line["noise"])["noise"][line["row"]]
    pipe = DiffusionPipeline.from_pretrained(model_path("sd3"))
    image = pipe(
        "a red circle", latents=noise[None], num_inference_steps=2, guidance_scale=1.0, max_sequence_length=1,
        output_type="pt",
    ).images  # fmt: skip
    assert torch.allclose(image, replay(searched, 0, line["candidate"]).images, atol=1e-4)


def test_the_page_shows_both_and_needs_no_network(searched):
    page = (searched / "optimize.html").read_text()
    assert page.count("data:image/webp") == 3
    assert "best_of_n" in page
    assert "http" not in page
    assert (searched / "curve.png").stat().st_size > 1000


def test_it_says_what_was_found_and_spent(capsys, tmp_path):
    arguments = ("optimize", "a <b>red</b> circle", "--reward", "jpeg_size", "--num-steps", "1", "--candidates", "2")
    code, out, _ = run(capsys, *arguments, "--batch", "1", "--out", str(tmp_path / "o"))
    assert code == 0
    assert out.count("model calls a prompt") == 2
    assert "best_of_n: 2 candidates, 2 model calls (2 forward, 0 backward)" in out
    assert f"page: {tmp_path / 'o' / 'optimize.html'}" in out.replace("\n", "")
    page = (tmp_path / "o" / "optimize.html").read_text()
    assert "<b>red</b>" not in page
    assert "&lt;b&gt;red" in page
    code, _, err = run(capsys, *arguments, "--out", str(tmp_path / "o"))
    assert (code, "already holds a search" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("a red circle", "--method", "reno", "--reward", "jpeg_size"),
            "use method best_of_n, or a reward with a gradient",
        ),
        (("a red circle", "--method", "reno", "--reward", "palette", "--set", "lrr=1"), "Did you mean 'lr'"),
        (("a red circle", "--method", "rino"), "Did you mean 'reno'"),
        (("a red circle", "--set", "lr"), "not key=value"),
        (("a red circle", "--reward", "[1]"), "rewards are names"),
        (("a red circle", "--reward", "{a: "), "is not YAML"),
        (("an unknown thing", "--candidates", "1", "--num-steps", "1"), "needs the columns tag and include"),
        ((), "give a prompt"),
        (("a", "--prompts", "b.txt"), "not both"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_wrong_input_is_one_message_and_exit_code_two(capsys, tmp_path, arguments, message):
    code, out, err = run(capsys, "optimize", *arguments, "--out", str(tmp_path / "o"))
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err


def test_an_interrupt_keeps_what_was_found(capsys, tmp_path, monkeypatch):
    from visalign.search.outcome import Tracker

    seen = Tracker.means

    def stopped(tracker, active):
        seen(tracker, active)
        raise KeyboardInterrupt

    monkeypatch.setattr(Tracker, "means", stopped)
    arguments = (
        "a red circle",
        "--reward",
        "jpeg_size",
        "--num-steps",
        "1",
        "--batch",
        "1",
        "--out",
        str(tmp_path / "o"),
    )
    code, _, err = run(capsys, "optimize", *arguments)
    assert code == 130
    assert str(tmp_path / "o") in err
    assert len(lines(tmp_path / "o")) == 1
    assert (tmp_path / "o" / "best" / "000.png").is_file()


def test_rewards_and_options_are_read():
    assert read_rewards(["shapes, palette"]) == {"shapes": 1.0, "palette": 1.0}
    assert read_rewards(["{palette: 0.5}", "shapes"]) == {"palette": 0.5, "shapes": 1.0}
    assert read_options(["lr=2", "norm_weight=0"]) == {"lr": 2, "norm_weight": 0}


def test_prompts_of_the_built_in_world_bring_their_columns():
    assert chosen_prompts(["a red circle"], None, None).columns[0]["include"][0]["color"] == "red"
    tags = [c["tag"] for c in chosen_prompts([], "shapes/held_out", 6).columns]
    assert len(set(tags)) == 6
    with pytest.raises(InputError, match="not both"):
        chosen_prompts([], None, None)


def test_progress_speaks_of_groups():
    shown = console()
    with shown.capture() as text, SearchProgress(shown) as progress:
        row = {"method": "reno", "model_calls": 1200, "seconds": 3.0, "prompts": 4, "best": 0.5, "first": 0.25}
        progress(row | {"group": 1, "groups": 3, "share": 0.5})
        progress(row | {"group": 0, "groups": 1, "share": 0.25})
    assert "reno 2/3  best 0.5000  plain 0.2500  1,200 model calls a prompt" in text.get()
    assert "9 s left" in text.get()
