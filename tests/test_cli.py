"""The command line: what it imports, exit codes, messages, and that every listed thing can be described."""

import json
import subprocess
import sys

import pytest
import torch
import yaml

from tests.command import run
from visalign import registry, training
from visalign.__main__ import explain
from visalign.cli import with_resume_value
from visalign.cli_run import after_interrupt, closing_words
from visalign.config import dump_yaml, load_config
from visalign.types import InputError, RunError

HEAVY = {"torch", "diffusers", "transformers", "pydantic", "numpy", "rich", "jinja2", "yaml", "peft", "PIL", "av"}


@pytest.mark.parametrize("code", ["import visalign", "import visalign.cli", "import visalign.__main__"])
def test_start_imports_no_heavy_module(code):
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert not HEAVY & {name.split(".")[0] for name in found.stdout.split()}


def test_help_imports_no_heavy_module():
    code = (
        "import sys; from visalign.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: print('MODULES', *sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, modules = found.stdout.split("MODULES")
    for command in (
        "quickstart",
        "train",
        "sample",
        "compare",
        "list",
        "describe",
        "doctor",
        "plan",
        "config",
        "optimize",
        "score",
        "shapes",
    ):
        assert command in shown
    assert not HEAVY & {name.split(".")[0] for name in modules.split()}


def test_module_and_script_are_the_same():
    found = subprocess.run([sys.executable, "-m", "visalign", "shapes", "--help"], capture_output=True, text=True)
    assert found.returncode == 0
    assert all(command in found.stdout for command in ("render", "verify", "train"))


def test_public_names_are_lazy_and_complete():
    import visalign

    assert all(getattr(visalign, name) is not None for name in visalign.__all__)
    assert callable(visalign.plan)
    with pytest.raises(AttributeError, match="it has Comparison"):
        visalign.finetune


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "none.yaml"), "does not exist"),
        (("train", "configs/quickstart.yaml", "optimiser.lr=1"), "Did you mean 'optimizer'"),
        (("train", "configs/quickstart.yaml", "lr"), "is not key=value"),
        (("plan", "configs/quickstart.yaml", "model.name=shapes/sd4"), "Did you mean 'shapes/sd3'"),
        (("list", "reward"), "Did you mean 'rewards'"),
        (("list", "rewards", "zzz*"), "no rewards match"),
        (("describe", "gpro"), "Did you mean 'grpo'"),
        (("sample", "--out", "x"), "give prompts"),
        (("sample", "--out", "x", "--prompt", "a", "--prompts", "b.txt"), "not both"),
        (("compare", "nowhere", "--out", "x"), "is no folder"),
        (("shapes", "train", "sd9"), "Did you mean 'sd3'"),
        (("shapes", "judges", "clop", "--out", "x"), "Did you mean 'clip'"),
        (("shapes", "judges", "blip", "--out", "x", "--workers", "2"), "--workers are for vlm"),
        (("shapes", "judges", "vlm", "--out", "x", "--device", "tpu"), "none of cpu, cuda"),
        (("config",), "--schema"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_wrong_input_is_one_message_and_exit_code_two(capsys, arguments, message, tmp_path, monkeypatch):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("visalign: ")
    assert "Traceback" not in out + err


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no GPU it is refused")
def test_a_gpu_that_is_not_there_is_refused(capsys, tmp_path):
    code, _, err = run(capsys, "shapes", "judges", "vlm", "--out", str(tmp_path / "x"), "--device", "cuda")
    assert code == 2
    assert "torch sees no GPU here; write --device cpu" in err
    assert not (tmp_path / "x").exists()


def test_usage_errors_are_exit_code_two(capsys):
    assert run(capsys, "frobnicate")[0] == 2
    assert run(capsys, "train")[0] == 2


def test_errors_have_codes():
    assert explain(InputError("a")) == (2, "a")
    assert explain(RunError("b")) == (1, "b")
    code, message = explain(torch.OutOfMemoryError("tried to allocate"))
    assert code == 1
    assert "lower train.micro_batch" in message
    with pytest.raises(ValueError, match="ours"):
        explain(ValueError("ours"))


def write(config, path):
    path.write_text(dump_yaml(config))
    return str(path)


def test_train_prints_the_plan_then_progress_then_the_paths(capsys, small_config, tmp_path):
    config = small_config("nft")
    source = write(config, tmp_path / "a.yaml")
    code, out, _ = run(capsys, "train", source, "train.iterations=1")
    assert code == 0
    assert (
        out.index("2 groups × 4 = 8 rows")
        < out.index("held out at 0")
        < out.index("iteration 1/1")
        < out.index("report  ")
    )
    assert "images/s" in out
    code, _, err = run(capsys, "train", source)
    assert (code, "already holds a run" in err) == (2, True)
    code, out, _ = run(capsys, "train", source, "--resume")
    assert code == 0
    assert "iteration 2/2" in out
    assert "iteration 1/2" not in out


def test_a_reward_that_fails_is_exit_code_one(capsys, small_config, tmp_path):
    config = small_config("nft", rewards={"tests.test_training:broken_nan": 1.0})
    code, _, err = run(capsys, "train", write(config, tmp_path / "a.yaml"))
    assert code == 1
    assert "nan" in err


def test_interrupt_is_130_with_the_command_that_goes_on(capsys, small_config, tmp_path, monkeypatch):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stopped)
    config = small_config("nft")
    source = write(config, tmp_path / "a.yaml")
    code, _, err = run(capsys, "train", source, "seed=3")
    assert code == 130
    assert "before the first checkpoint" in err
    (tmp_path / "run" / "checkpoints" / "000001").mkdir(parents=True)
    assert after_interrupt(config, source, ["seed=3"]).endswith(f"visalign train {source} seed=3 --resume")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train", "a.yaml", "--resume"], ["train", "a.yaml", "--resume=latest"]),
        (["train", "--resume", "configs/quickstart.yaml"], ["train", "--resume=latest", "configs/quickstart.yaml"]),
        (["train", "a.yaml", "--resume", "run/000400"], ["train", "a.yaml", "--resume=run/000400"]),
        (["train", "a.yaml", "--resume", "seed=1"], ["train", "a.yaml", "--resume=latest", "seed=1"]),
        (["train", "a.yaml", "--resume", "--nproc", "2"], ["train", "a.yaml", "--resume=latest", "--nproc", "2"]),
        (["train", "a.yaml", "--resume=x"], ["train", "a.yaml", "--resume=x"]),
        (["shapes", "train", "sd3", "--resume"], ["shapes", "train", "sd3", "--resume"]),
        ([], []),
    ],
)
def test_resume_takes_a_path_or_none(given, expected):
    assert with_resume_value(given) == expected


@pytest.mark.slow
def test_nproc_starts_that_many_processes(small_config, tmp_path):
    config = small_config("nft", rollout={"num_steps": 2}, train={"iterations": 1})
    source = write(config, tmp_path / "a.yaml")
    found = subprocess.run(
        [sys.executable, "-m", "visalign", "train", source, "--nproc", "2"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "on each of 2 processes" in found.stdout
    assert found.stdout.count("iteration 1/1") == 1
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("kind", registry.TABLES)
def test_every_kind_is_listed_and_described(capsys, kind):
    for name in registry.names(kind):
        code, out, _ = run(capsys, "describe", name)
        assert code == 0
        assert name in out
        example = out.split("Example:\n")[-1]
        values = yaml.safe_load(example)
        if kind == "searches":
            assert values.startswith("visalign optimize")
        elif kind == "methods":
            assert load_config(values).method.name == name
        elif values:
            assert load_config(values | {"method": {"name": "nft"}})
    if registry.names(kind):
        code, out, _ = run(capsys, "list", kind)
        assert code == 0
        assert all(name in out for name in registry.names(kind))


def test_describe_shows_options_with_defaults_and_docs(capsys):
    _, out, _ = run(capsys, "describe", "grpo")
    assert "clip: 0.0001" in out
    assert "Half width of the ratio's clip" in out
    _, out, _ = run(capsys, "describe", "optimizer")
    assert "max_grad_norm: 1.0" in out
    assert "Weight" in run(capsys, "describe", "ema")[1] or "decay" in run(capsys, "describe", "ema")[1]
    assert "default: runs/run" in run(capsys, "describe", "output")[1]


def test_describe_takes_a_users_own_function(capsys):
    code, out, _ = run(capsys, "describe", "tests.test_training:constant_reward")
    assert code == 0
    assert "rewards:" in out


def test_config_resolves_and_gives_a_schema(capsys):
    code, out, _ = run(capsys, "config", "configs/quickstart.yaml", "seed=9")
    assert code == 0
    assert load_config(yaml.safe_load(out)).seed == 9
    code, out, _ = run(capsys, "config", "--schema")
    assert "optimizer" in json.loads(out)["properties"]


def test_sample_and_compare(capsys, tiny_model, tmp_path):
    folder, _call = tiny_model
    size = ["--num-steps", "1", "--guidance-scale", "1"]
    code, out, _ = run(
        capsys, "sample", "--model", str(folder), "--prompt", "a red circle", "--out", str(tmp_path / "s"), *size
    )
    assert code == 0
    assert (tmp_path / "s" / "000.png").is_file()
    prompts = tmp_path / "p.txt"
    prompts.write_text("a red circle\ntwo blue squares\n")
    code, out, _ = run(
        capsys, "compare", "base", "--model", str(folder), "--prompts", str(prompts), "--rewards", "jpeg_size", "--out",
        str(tmp_path / "c"), *size,
    )  # fmt: skip
    assert code == 0
    assert (tmp_path / "c" / "compare.html").is_file()
    assert "jpeg_size" in out


def test_shapes_render_and_verify(capsys, tmp_path):
    assert run(capsys, "shapes", "render", "--out", str(tmp_path), "--count", "6", "--size", "64")[0] == 0
    listed = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in listed] == [f"{i:05d}.png" for i in range(6)]
    assert all(row["include"] for row in listed)
    code, out, _ = run(capsys, "shapes", "verify", str(tmp_path))
    assert code == 0
    assert "000.png" in out or "00000.png" in out
    code, _, err = run(capsys, "shapes", "verify", str(tmp_path / "none"))
    assert (code, "no pictures" in err) == (2, True)


def test_quickstart_ends_with_the_numbers_and_what_to_do_next(tmp_path):
    summary = {"reward": "shapes/strict", "base": 0.48, "tuned": 0.66, "delta": 0.18, "delta_ci": [0.12, 0.24]}
    summary |= {"held_out_prompts": 150, "wall_s": 241.0, "model_calls": 153_600, "reward_calls": 7680}
    text = closing_words(summary, tmp_path / "report.html", tmp_path / "lora")
    assert "0.480 → 0.660, difference +0.18 (95 % interval +0.12 to +0.24)" in text
    assert "report.html" in text
    assert len(text.split("next:\n")[1].splitlines()) == 3


def test_a_second_quickstart_sets_the_first_one_aside(tmp_path):
    from visalign.cli_run import set_aside

    run = tmp_path / "quickstart"
    set_aside(run)
    for number in (1, 2):
        run.mkdir()
        (run / "summary.json").write_text(str(number))
        set_aside(run)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["quickstart-1", "quickstart-2"]
    assert (tmp_path / "quickstart-2" / "summary.json").read_text() == "2"
