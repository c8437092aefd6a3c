"""The commands that spend something: train, quickstart, plan; and what sample and compare share with them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table
from rich.text import Text

from visalign.charts import number
from visalign.config import RunConfig, load_config
from visalign.progress import TrainProgress, console
from visalign.report import duration, signed
from visalign.types import InputError, Prompts

if TYPE_CHECKING:
    from visalign.comparison import Comparison

QUICKSTART = "configs/quickstart.yaml"
INTERRUPTED = 130


def is_main() -> bool:
    """Whether this is the process that prints, of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def quiet_libraries() -> None:
    """No bars for loading from disk (downloads keep theirs), no notes on LoRA keys that text encoders lack."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.get_logger("diffusers.loaders").setLevel("ERROR")
    transformers.utils.logging.disable_progress_bar()


def train(source: str, overrides: Sequence[str], resume: str | None) -> int:
    """Train as a config says; returns the exit code."""
    result = _train(load_config(source, overrides), source, overrides, resume)
    if result is None:
        return INTERRUPTED
    if is_main():
        print(f"LoRA    {result.lora_path}\nreport  {result.report}")
    return 0


def _train(config: RunConfig, source: str, overrides: Sequence[str], resume: str | None) -> Any:
    # The result, or None when it was interrupted.
    from visalign import planning, training

    quiet_libraries()
    terminal = console(quiet=not is_main())
    point: Path | Literal["latest"] | None = "latest" if resume == "latest" else Path(resume) if resume else None
    try:
        terminal.print(planning.table(planning.plan(config)))
        with TrainProgress(terminal, config) as progress:
            return training.train(config, resume=point, progress=progress)
    except KeyboardInterrupt:
        if is_main():
            print(after_interrupt(config, source, overrides), file=sys.stderr)
        return None


def after_interrupt(config: RunConfig, source: str, overrides: Sequence[str]) -> str:
    """How to go on."""
    run = Path(config.output)
    if not any((run / "checkpoints").glob("[0-9]*")):
        return f"interrupted before the first checkpoint; delete {run} and start again"
    return f"interrupted; continue with: {shlex.join(['visalign', 'train', source, *overrides, '--resume'])}"


def launch(source: str, overrides: Sequence[str], resume: str | None, nproc: int) -> int:
    """The same command in several processes on this machine, through torch's launcher; returns its exit code."""
    config = load_config(source, overrides)  # a wrong config is one message, not one a process
    again = ["train", source, *overrides, *([] if resume is None else [f"--resume={resume}"])]
    try:
        return subprocess.call([*launcher(nproc), "visalign", *again])  # noqa: S603
    except KeyboardInterrupt:
        print(after_interrupt(config, source, [*overrides, f"--nproc={nproc}"]), file=sys.stderr)
        return INTERRUPTED


def launcher(nproc: int) -> list[str]:
    """torchrun for one machine; `accelerate launch --cpu` would start a single process."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}", "-m"]


def quickstart(overrides: Sequence[str]) -> int:
    """Run the shipped config and say what came out; returns the exit code."""
    config = load_config(QUICKSTART, overrides)
    set_aside(Path(config.output))
    result = _train(config, QUICKSTART, overrides, None)
    if result is None:
        return INTERRUPTED
    print(closing_words(result.summary, result.report, result.lora_path))
    return 0


def set_aside(run: Path) -> None:
    """Rename the folder of an earlier run, so that a new one may take its name."""
    if not run.exists():
        return
    number = next(n for n in range(1, 10_000) if not run.with_name(f"{run.name}-{n}").exists())
    print(f"{run} is now {run.rename(run.with_name(f'{run.name}-{number}'))}")


def closing_words(summary: dict[str, Any], report: Path, lora: Path) -> str:
    """Held-out score before and after, the interval of the difference, the report, and what to do next."""
    low, high = summary["delta_ci"]
    return "\n".join(
        [
            "",
            f"held-out {summary['reward']}: {summary['base']:.3f} → {summary['tuned']:.3f}, "
            f"difference {signed(summary['delta'])} (95 % interval {signed(low)} to {signed(high)}), "
            f"{summary['held_out_prompts']} prompts that were not trained on",
            f"{duration(summary['wall_s'])}, {summary['model_calls']:,} model calls, "
            f"{summary['reward_calls']:,} reward calls",
            f"report: {report}",
            "",
            "next:",
            f'  visalign sample --lora {lora} --prompt "three red circles" --num-images 8 --out samples',
            f"  visalign compare {lora} --out comparison",
            "  visalign train configs/shapes/grpo.yaml model.name=YOUR_MODEL prompts.train=YOUR_PROMPTS.txt",
        ]
    )


def asked_prompts(texts: Sequence[str], source: str | None) -> Prompts:
    """Prompts from the command line: texts, or a file.

    Raises:
        InputError: none, or both.
    """
    from visalign.prompts import read_prompts

    if bool(texts) == (source is not None):
        raise InputError('give prompts with --prompt "three red circles", or a file with --prompts FILE, not both')
    return read_prompts(source) if source is not None else Prompts(tuple(texts))


def split(names: str) -> list[str]:
    """Names between commas.

    Example:
        >>> split("shapes, jpeg_size")
        ['shapes', 'jpeg_size']
    """
    return [name.strip() for name in names.split(",") if name.strip()]


def show_comparison(found: Comparison) -> None:
    """Print the table, and where the page is."""
    table = Table("score", "", "mean", f"difference to {found.reference}", "win rate", box=None)
    for row in found.table():
        cells = [row["reward"], row["name"], _interval(row["mean"], row["ci"], number), *_differences(row)]
        table.add_row(*map(Text, cells))
    console().print(table)
    print(f"page: {found.page}")


def _interval(value: float, ends: Sequence[float], show: Any) -> str:
    return f"{show(value)} [{show(ends[0])}, {show(ends[1])}]"


def _differences(row: dict[str, Any]) -> list[str]:
    if "delta" not in row:
        return ["", ""]
    share = [f"{100 * v:.0f} %" for v in (row["win_rate"], *row["win_rate_ci"])]
    return [_interval(row["delta"], row["delta_ci"], signed), f"{share[0]} [{share[1]}, {share[2]}]"]


def plan(source: str, overrides: Sequence[str], measure: bool) -> None:
    """Print the plan of a config."""
    from visalign import planning

    config = load_config(source, overrides)
    quiet_libraries()
    console().print(planning.table(planning.plan(config, measure=measure)))
