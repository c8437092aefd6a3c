"""Samples, comparisons and the card's snippet on a real tiny SD3 with a real LoRA: diffusers alone gives the same."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from visalign import load_pipeline, lora, read_prompts, sample
from visalign.card import snippet, write_card
from visalign.comparison import compare, contestants
from visalign.config import RewardEntry, dump_yaml
from visalign.evaluation import evaluate
from visalign.media_io import read_media, read_metadata, to_uint8
from visalign.policy import Policy
from visalign.record import read_record
from visalign.runs import RunFolder
from visalign.sampling import load_lora, settings, to_prompts
from visalign.scoring import RewardBank
from visalign.types import InputError, Media

PROMPTS = ["a red circle", "two blue squares", "a green star"]


@pytest.fixture
def run(small_config):
    """The folder of a run whose LoRA has an effect, with the samples of an evaluation."""
    config = small_config("nft", rollout={"num_steps": 2, "guidance_scale": 3.0})
    pipeline = load_pipeline(config.model.name)
    policy = Policy(pipeline.denoisers, config.lora, pipeline.family.lora_targets, 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters.values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    folder = RunFolder(Path(config.output), None)
    folder.path.mkdir(parents=True)
    (folder.path / "config.yaml").write_text(dump_yaml(config))
    found = evaluate(
        pipeline, read_prompts(config.prompts.held_out), RewardBank(config.rewards), seed=1234, num_steps=2,
        guidance_scale=3.0, batch=3, call=config.model.call, keep_images=3,
    )  # fmt: skip
    folder.write_samples(0, found)
    lora.save(policy, folder.path / "lora")
    return folder.path


def test_the_snippet_makes_the_previews_again(run, monkeypatch):
    write_card(run)
    code = (run / "README.md").read_text().split("```python")[1].split("```")[0]
    monkeypatch.chdir(run)
    names = {}
    exec(code, names)
    previews = read_record(run).samples(0)
    assert names["prompts"] == [p["prompt"] for p in previews]
    for picture, preview in zip(names["images"], previews, strict=True):
        expected = torch.from_numpy(to_uint8(read_media(preview["path"]).pixels[0])).int()
        shown = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).view(expected[0].shape)
        assert (shown.int() - expected[0]).abs().max() <= 1


def test_the_snippet_names_the_settings_of_the_run(run):
    code = snippet(read_record(run), "lora")
    assert "num_inference_steps=2, guidance_scale=3.0, max_sequence_length=16, height=32, width=32" in code


def test_samples_are_those_of_plain_diffusers(tiny_model, tmp_path):
    folder, call = tiny_model
    media = sample(str(folder), PROMPTS, seed=5, num_images=2, num_steps=2, guidance_scale=1.0, call=call, batch=4)
    assert len(media) == 6
    plain = DiffusionPipeline.from_pretrained(folder)
    noise = [torch.Generator("cpu").manual_seed(6)]
    again = plain([PROMPTS[1]], generator=noise, num_inference_steps=2, guidance_scale=1.0, output_type="pt", **call)
    assert torch.allclose(media.images[3], again.images[0], atol=1e-5)


def test_files_say_what_made_them(tiny_model, tmp_path):
    folder, call = tiny_model
    out = tmp_path / "out"
    media = sample(str(folder), "a red circle", out=out, num_images=2, num_steps=1, guidance_scale=1.0, call=call)
    assert sorted(p.name for p in out.iterdir()) == ["000.png", "001.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert torch.allclose(read_media(out / "001.png").pixels, media.pixels[1:], atol=1 / 255)
    found = read_metadata(out / "001.png")
    assert (found["prompt"], found["seed"], found["num_steps"], found["lora"]) == ("a red circle", 1, 1, None)
    assert found["model"] == str(folder)
    assert found["call"] == call


def test_a_lora_changes_the_samples_and_brings_its_runs_settings(run, tiny_model):
    folder, call = tiny_model
    plain = sample(str(folder), PROMPTS, num_steps=2, guidance_scale=3.0, call=call)
    tuned = sample(str(folder), PROMPTS, lora=run / "lora")
    assert (plain.pixels - tuned.pixels).abs().max() > 0.01
    found = settings(load_pipeline(str(folder)), run / "lora", None, None, None)
    assert (found.num_steps, found.guidance_scale, found.call) == (2, 3.0, call)
    assert settings(load_pipeline(str(folder)), run / "lora", 7, None, {}).num_steps == 7


def test_without_a_run_the_pipelines_own_defaults_hold(tiny_model):
    found = settings(load_pipeline(str(tiny_model[0])), None, None, None, None)
    assert (found.num_steps, found.guidance_scale, found.call) == (28, 7.0, {})


def test_a_lora_of_another_model_is_refused(run, tiny_model, tmp_path):
    tensors = load_file(run / "lora" / lora.FILE)
    (tmp_path / "other").mkdir()
    save_file({k.replace("transformer.", "unet."): v for k, v in tensors.items()}, tmp_path / "other" / lora.FILE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no LoRA in"):
        load_lora(load_pipeline(str(tiny_model[0])), tmp_path / "empty")


def test_prompts_in_every_form():
    assert to_prompts("a").texts == ("a",)
    assert to_prompts(["a", "b"]).texts == ("a", "b")
    with pytest.raises(InputError, match="no prompt"):
        to_prompts([])


def test_compare_base_with_a_lora(run, tiny_model, tmp_path):
    folder, _ = tiny_model
    prompts, seen = read_prompts(run.parent / "prompts.txt"), []
    rewards = {"jpeg_size": RewardEntry(params={"direction": "incompress"})}
    found = compare(
        str(folder), ["base", run / "lora"], prompts, rewards, out=tmp_path / "cmp", images=2, progress=seen.append
    )
    assert seen == ["base", "run"]
    base, tuned = found.table()
    assert "delta" not in base
    assert tuned["delta"] == pytest.approx(tuned["mean"] - base["mean"], abs=1e-6)
    assert tuned["delta_ci"][0] <= tuned["delta"] <= tuned["delta_ci"][1]
    assert 0 <= tuned["win_rate_ci"][0] <= tuned["win_rate"] <= tuned["win_rate_ci"][1] <= 1
    assert json.loads((tmp_path / "cmp" / "compare.json").read_text())["table"] == found.table()
    page = found.page.read_text()
    assert page.count("data:image/webp") == 4
    assert "http" not in page
    assert len(list((tmp_path / "cmp" / "samples").rglob("*.png"))) == 4


def test_a_base_against_itself_is_a_tie(tiny_model, run):
    prompts = read_prompts(run.parent / "prompts.txt")
    found = compare(
        str(tiny_model[0]), ["base"], prompts, ["jpeg_size"], num_steps=1, guidance_scale=1.0, call=tiny_model[1]
    )
    assert found.page is None
    assert list(found.evaluations) == ["base"]


def test_contestants_are_called_by_their_runs(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "lora").mkdir(parents=True)
        (tmp_path / "twice" / name / "lora").mkdir(parents=True)
    assert list(contestants([tmp_path / "a" / "lora", tmp_path / "b" / "lora"])) == ["base", "a", "b"]
    assert list(contestants([tmp_path / "a" / "lora", "base"])) == ["a", "base"]
    double = contestants([tmp_path / "a" / "lora", tmp_path / "twice" / "a" / "lora"])
    assert len(double) == 3
    with pytest.raises(InputError, match="is no folder"):
        contestants([tmp_path / "none"])


def test_media_of_a_sample_are_cpu_tensors_in_range(tiny_model):
    folder, call = tiny_model
    media = sample(load_pipeline(str(folder)), "a red circle", num_steps=1, guidance_scale=1.0, call=call)
    assert isinstance(media, Media)
    assert float(media.pixels.min()) >= 0
    assert float(media.pixels.max()) <= 1
