"""The command `optimize`: what was asked for, a moving line, and what came out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from visalign import shapes
from visalign.batch.judging import parse_rewards
from visalign.charts import number
from visalign.cli_run import INTERRUPTED, asked_prompts, quiet_libraries, set_aside
from visalign.evaluation import alternating
from visalign.optimizing import OptimizeResult, optimize
from visalign.progress import console
from visalign.report import duration, signed
from visalign.search.outcome import shown
from visalign.types import InputError, Prompts

DEFAULT_OUT = Path("runs") / "optimize"


class SearchProgress:
    """Shows the steps of a search: a moving line on a terminal, a line a step elsewhere.

    Args:
        terminal: where to print.
    """

    def __init__(self, terminal: Console) -> None:
        self.console = terminal
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rest]}"))
        self.bar = Progress(*columns, console=terminal, disable=not terminal.is_terminal)
        self.task = self.bar.add_task("starting", total=1.0, rest="")

    def __enter__(self) -> SearchProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, row: dict[str, Any]) -> None:
        """Show one step: the best so far and the plain sample, means over the prompts that are searched now."""
        done = (row["group"] + row["share"]) / row["groups"]
        left = row["seconds"] * (1 / max(row["share"], 1e-9) - 1) if row["groups"] == 1 else None
        which = f" {row['group'] + 1}/{row['groups']}" if row["groups"] > 1 else ""
        line = f"{row['method']}{which}  best {row['best']:.4f}  plain {row['first']:.4f}"
        rest = f"{row['model_calls']:,} model calls a prompt" + ("" if left is None else f", {duration(left)} left")
        self.bar.update(self.task, completed=done, description=line, rest=rest)
        if not self.console.is_terminal:
            self.console.print(f"{line}  {rest}", markup=False, highlight=False)


def run(
    texts: Sequence[str], source: str | None, rewards: Sequence[str], judges: Sequence[str], method: str,
    options: Sequence[str], *, count: int | None, out: Path | None, budget: Mapping[str, float | None], **how: Any,
) -> int:  # fmt: skip
    """Optimise, print what came out, and return the exit code.

    Args:
        texts: prompts.
        source: a file of prompts instead.
        rewards: names between commas, or YAML as in a config's `rewards`; several are put together.
        judges: the same for rewards that only look.
        method: a name of `visalign list searches`.
        options: its options as key=value.
        count: how many of the prompts, in an order in which categories alternate; None is all.
        out: folder; None is runs/optimize, an earlier one renamed.
        budget: limits by name; None is none.
        how: passed on to `optimize`.
    """
    asked = chosen_prompts(texts, source, count)
    wanted, looking = read_rewards(rewards), read_rewards(judges)
    search = {"name": method} | read_options(options)
    quiet_libraries()
    if out is None:
        set_aside(DEFAULT_OUT)
    folder = DEFAULT_OUT if out is None else out
    limits = {name: limit for name, limit in budget.items() if limit is not None}
    try:
        with SearchProgress(console()) as progress:
            found = optimize(
                asked, rewards=wanted, method=search, budget=limits, judges=looking, out=folder, progress=progress,
                **how,
            )  # fmt: skip
    except KeyboardInterrupt:
        print(f"interrupted; the best so far and every candidate are in {folder}", file=sys.stderr)
        return INTERRUPTED
    show(found)
    return 0


def chosen_prompts(texts: Sequence[str], source: str | None, count: int | None) -> Prompts:
    """The prompts, those that the built-in world knows with its columns, so that its rewards can judge them.

    Raises:
        InputError: none, or texts and a file.

    Example:
        >>> chosen_prompts(["a red circle"], None, None).columns[0]["tag"]
        'colors'
    """
    if (not texts and source is None) or (texts and source is not None):
        raise InputError(
            'give a prompt, as in visalign optimize "a red circle", or a file with --prompts FILE, not both'
        )
    asked = asked_prompts(texts, source)
    known = {row["prompt"]: row for split_name in ("train", "held_out") for row in shapes.prompts(split_name)}  # type: ignore[arg-type]
    columns = tuple(known.get(t, {}) | dict(c) for t, c in zip(asked.texts, asked.columns, strict=True))
    asked = Prompts(asked.texts, tuple({k: v for k, v in c.items() if k != "prompt"} for c in columns), asked.images)
    return asked if count is None else asked.take(alternating(asked)[:count])


def read_rewards(given: Sequence[str]) -> dict[str, Any]:
    """Rewards from the command line.

    Raises:
        InputError: a text is neither names nor a YAML mapping.

    Example:
        >>> read_rewards(["palette,clip:model=shapes/clip", "{jpeg_size: {weight: 5}}"])
        {'palette': 1.0, 'clip': {'params': {'model': 'shapes/clip'}}, 'jpeg_size': {'weight': 5}}
    """
    found: dict[str, Any] = {}
    for text in given:
        value = _yaml(text)
        if not isinstance(value, str | dict):
            raise InputError(f"rewards are names, as in clip,aesthetic, or YAML, as in '{{clip: 5}}'; got {text!r}")
        found |= value if isinstance(value, dict) else _entries(parse_rewards(value))
    return found


def _entries(asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: {"params": dict(params)} if params else 1.0 for name, params in asked.items()}


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """Options of a method from key=value.

    Raises:
        InputError: a text is no key=value.

    Example:
        >>> read_options(["lr=1", "checkpoint=false"])
        {'lr': 1, 'checkpoint': False}
    """
    pairs = [text.partition("=") for text in given]
    wrong = [key for key, sign, _ in pairs if not sign]
    if wrong:
        raise InputError(f"option {wrong[0]!r} is not key=value, as in --set lr=1.0")
    return {key: _yaml(value) for key, _, value in pairs}


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{text!r} is not YAML: {error}") from None


def show(found: OptimizeResult) -> None:
    """Print the scores, what was spent, and where the page is."""
    table = Table("score", "", "mean", f"{found.outcome.method} against it", box=None)
    for row in (row for row in found.table() if row["reward"] in shown(found.outcome)):
        interval = f" [{number(row['ci'][0])}, {number(row['ci'][1])}]" if "ci" in row else ""
        ends = [signed(v) for v in (row["delta"], *row["delta_ci"])] if "delta" in row else []
        against = f"{ends[0]} [{ends[1]}, {ends[2]}]" if ends else ""
        table.add_row(*map(Text, (row["reward"], row["name"], number(row["mean"]) + interval, against)))
    console().print(table)
    for outcome in (found.outcome, found.baseline):
        if outcome is not None:
            spent = outcome.ledger
            print(
                f"{outcome.method}: {spent.candidates:,} candidates, {spent.model_calls:,} model calls "
                f"({spent.forwards:,} forward, {spent.backwards:,} backward), {duration(spent.seconds)}"
            )
    print(f"page: {found.page}")
