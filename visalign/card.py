"""The model card of a run, README.md, and the snippet with which plain diffusers makes the previews again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jinja2
import yaml

from visalign.charts import number
from visalign.record import Record, Row, read_record

PREVIEWS = 4
"""Rows of the snippet and of the card's table."""


def write_card(run: Path) -> Path:
    """Write `README.md` into a run's folder.

    Returns:
        Its path.

    Raises:
        InputError: the folder holds no run.
    """
    path, temporary = run / "README.md", run / ".README.md.tmp"
    temporary.write_text(render(read_record(run)), encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(record: Record) -> str:
    """The card as Markdown."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    env = jinja2.Environment(loader=loader, autoescape=False, trim_blocks=True, lstrip_blocks=True)  # noqa: S701
    env.filters |= {"cell": cell, "number": number}  # every free text passes `cell` or a fence
    code = snippet(record, "lora")
    return env.get_template("card.md.jinja").render(
        record=record,
        front=yaml.safe_dump(front_matter(record), sort_keys=False).strip(),
        outcomes=record.outcomes,
        alarms=record.kind("alarm"),
        previews=previews(record),
        snippet=code,
        fence=fence(code),
        method={k: v for k, v in record.config["method"].items() if k != "name"},
    )


def front_matter(record: Record) -> dict[str, Any]:
    """The card's metadata; a base model is named where it is a hub id."""
    model = record.config["model"]["name"]
    hub = {"base_model": model} if is_hub_id(model) else {}
    return {"library_name": "diffusers", **hub, "tags": ["lora", "visalign", record.config["method"]["name"]]}


def is_hub_id(model: str) -> bool:
    """Whether a model name is `owner/name` of the hub, neither a built-in model nor a folder."""
    return model.count("/") == 1 and not model.startswith(("shapes/", ".", "/")) and not Path(model).exists()


def previews(record: Record) -> list[dict[str, Row]]:
    """The first samples, before and after."""
    if not record.steps:
        return []
    base = {(s["prompt"], s["seed"]): s for s in record.samples(record.steps[0])}
    tuned = [s for s in record.samples(record.steps[-1]) if (s["prompt"], s["seed"]) in base]
    pairs = [{"base": base[s["prompt"], s["seed"]], "tuned": s} for s in tuned[:PREVIEWS]]
    return [{k: s | {"link": s["path"].relative_to(record.run).as_posix()} for k, s in p.items()} for p in pairs]


def cell(text: object) -> str:
    """A text as one cell of a Markdown table: no line breaks, no markup.

    Example:
        >>> cell("a | <b>")
        'a &#124; &lt;b&gt;'
    """
    marks = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;", "[": "&#91;", "*": "&#42;"}
    return " ".join("".join(marks.get(c, c) for c in str(text)).split())


def fence(code: str) -> str:
    """Backticks that no line of the code can close."""
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in code).split()), default=0)
    return "`" * max(3, longest + 1)


def snippet(record: Record, lora: str) -> str:
    """Python that makes the first previews again with diffusers alone.

    Args:
        record: the run.
        lora: path of its LoRA folder, as the reader will see it.
    """
    model = record.config["model"]
    rows = record.samples(record.steps[-1])[:PREVIEWS] if record.steps else []
    arguments = {
        "num_inference_steps": record.num_steps,
        "guidance_scale": record.config["rollout"]["guidance_scale"],
        **model["call"],
    }
    lines = [
        "import torch",
        "from diffusers import DiffusionPipeline",
        *(["from visalign.shapes import model_path"] if model["name"].startswith("shapes/") else []),
        "",
        f"pipe = DiffusionPipeline.from_pretrained({_model(model['name'])}, dtype=torch.{model['dtype']})",
        f"pipe.load_lora_weights({lora!r})",
        f"prompts = {json.dumps([r['prompt'] for r in rows], ensure_ascii=False)}",
        f"seeds = {[r['seed'] for r in rows]}",
        'noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]',
        f"result = pipe(prompts, generator=noise, {', '.join(f'{k}={v!r}' for k, v in arguments.items())})",
        _output(rows),
    ]
    return "\n".join(lines)


def _model(name: str) -> str:
    return f"model_path({name.removeprefix('shapes/')!r})" if name.startswith("shapes/") else repr(name)


def _output(rows: list[Row]) -> str:
    video = bool(rows) and rows[0]["file"].endswith(".mp4")
    return "videos = result.frames" if video else "images = result.images"
