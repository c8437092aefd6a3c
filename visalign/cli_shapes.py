"""The commands of the built-in world: render, verify, train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from visalign import shapes
from visalign.media_io import IMAGES, read_media, read_metadata
from visalign.progress import console
from visalign.section import nearest
from visalign.types import InputError


def render(out: Path, count: int, size: int, seed: int) -> None:
    """Write true pictures with their captions."""
    from visalign.shapes.pairs import make_truth

    print(f"{make_truth(out, count, size, seed=seed)} pictures with captions in {out}")


def verify(paths: Sequence[Path]) -> None:
    """Print what is seen in each picture, and for known prompts whether it is right."""
    from visalign.shapes.verifier import verify as judge

    rows = {row["prompt"]: row for split in ("held_out", "train") for row in shapes.prompts(split)}  # type: ignore[arg-type]
    table, right, judged = Table("file", "seen", "prompt", "right", "credit", box=None), 0.0, 0
    for path in pictures(paths):
        prompt = caption(path)
        known = rows.get(prompt, {"tag": "single_object", "include": [], "exclude": []})
        verdict = judge(read_media(path).images, [known])
        seen = ", ".join(f"{s.color} {s.shape or 'something'}" for s in verdict.objects[0]) or "nothing"
        strict, graded = float(verdict.strict[0]), float(verdict.graded[0])
        marks = ("yes" if strict else "no", f"{graded:.2f}") if prompt in rows else ("", "")
        table.add_row(*map(Text, (path.name, seen, prompt, *marks)))
        right, judged = right + strict * (prompt in rows), judged + (prompt in rows)
    console().print(table)
    print(f"{right:.0f} of {judged} judged pictures are right" if judged else "no picture has a known prompt")


def pictures(paths: Sequence[Path]) -> list[Path]:
    """The picture files at some paths, folders walked.

    Raises:
        InputError: there are none.
    """
    found = [p for path in paths for p in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    files = [p for p in found if p.suffix.lower() in IMAGES]
    if not files:
        raise InputError(f"no pictures in {', '.join(map(str, paths))}; give files or folders with {', '.join(IMAGES)}")
    return files


def caption(path: Path) -> str:
    """The prompt of a picture: from its metadata, or the text file beside it; empty without both."""
    text = path.with_suffix(".txt")
    beside = text.read_text(encoding="utf-8").strip() if text.is_file() else ""
    return str(read_metadata(path).get("prompt", beside))


def train(name: str, out: Path, resume: bool) -> None:
    """Make a model again, with a bar for each stage."""
    if name not in shapes.MODELS:
        raise InputError(
            f"no shapes model is called {name!r}.{nearest(name, shapes.MODELS)} {', '.join(shapes.MODELS)}"
        )
    if (out / "training").exists() and not resume:
        raise InputError(f"{out} holds an unfinished training; go on with --resume, or delete it")
    from visalign.shapes.training import train_model

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn()) as bar:
        tasks: dict[str, int] = {}

        def show(stage: str, done: int, total: int, loss: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, description=f"{stage}, loss {loss:.4f}")  # type: ignore[arg-type]

        train_model(name, out, resume=resume, progress=show)
    print(f"{name} is in {out}")
