"""The command that makes the judges of the built-in world."""

from __future__ import annotations

from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from visalign import shapes
from visalign.progress import console
from visalign.section import nearest
from visalign.types import InputError

DEVICES = ("cpu", "cuda")


def train(name: str, out: Path, clip: Path | None, resume: bool, device: str, workers: int) -> None:
    """Make a judge again, with a bar; the last words are where it is.

    Raises:
        InputError: no such judge, an unfinished training in the way, no CLIP to build on, or no place to train it.
    """
    if name not in shapes.JUDGES:
        near = nearest(name, shapes.JUDGES)
        raise InputError(f"no shapes judge is called {name!r}.{near} {', '.join(shapes.JUDGES)}")
    if (out / "training").exists() and not resume:
        raise InputError(f"{out} holds an unfinished training; go on with --resume, or delete it")
    eyes = clip or shapes.judge_path("clip")
    if name != "clip" and not (eyes / "open_clip_config.json").is_file():
        raise InputError(f"{eyes} holds no shapes/clip, which {name} builds on; make it first, or name it with --clip")
    import torch

    from visalign.shapes.judges.learning import HERE, Place
    from visalign.shapes.judges.training import ANYWHERE, train_judge

    place = Place(device, workers)
    if place != HERE and name not in ANYWHERE:
        raise InputError(f"{name} is trained on the CPU; --device and --workers are for {', '.join(ANYWHERE)}")
    if device not in DEVICES:
        raise InputError(f"--device {device} is none of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; write --device cpu, or leave it out")

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=console()) as bar:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int, loss: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, description=f"{stage}, loss {loss:.4f}")

        train_judge(name, out, clip=eyes, resume=resume, progress=show, place=place)
    print(f"{name} is in {out}")
