"""What a training shows while it runs: one line with reward, images a second, time left and memory; events above it."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from visalign.charts import number
from visalign.config import RunConfig
from visalign.record import eval_names
from visalign.report import duration, signed


def console(*, quiet: bool = False) -> Console:
    """The terminal; where the output goes to a file, lines are wide and tables do not wrap."""
    terminal = Console(quiet=quiet)
    return terminal if terminal.is_terminal else Console(quiet=quiet, width=200)


class TrainProgress:
    """Shows the rows of metrics.jsonl: a moving line on a terminal, a line an iteration elsewhere.

    Args:
        terminal: where to print.
        config: of the run; tells how much there is to do.
    """

    def __init__(self, terminal: Console, config: RunConfig) -> None:
        self.console, self.train = terminal, config.train
        self.base: dict[str, dict[str, Any]] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rest]}"))
        self.bar = Progress(*columns, console=terminal, disable=not terminal.is_terminal)
        self.task = self.bar.add_task("starting", total=self.train.iterations, rest="")

    def __enter__(self) -> TrainProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, row: dict[str, Any]) -> None:
        """Show one row."""
        shows = {"train": self._iteration, "eval": self._evaluation, "alarm": self._alarm}
        if row["kind"] in shows:
            shows[row["kind"]](row)

    def _iteration(self, row: dict[str, Any]) -> None:
        done, total = row["iteration"], self.train.iterations
        reward = f"reward {row['reward']:.3f}" if "reward" in row else f"loss {row['loss']:.4g}"
        rest = f"{row['images_per_s']:.1f} images/s, {self._time_left(row)} left, {row['peak_memory_gb']:.1f} GB"
        line = f"iteration {done}/{total}  {reward}"
        self.bar.update(self.task, completed=done, description=line, rest=rest)
        if not self.console.is_terminal:
            self.console.print(f"{line}  {rest}", highlight=False)

    def _time_left(self, row: dict[str, Any]) -> str:
        seconds, done = row["time/total"], row["iteration"]
        left = seconds / done * (self.train.iterations - done)
        limit = left if self.train.max_minutes is None else 60 * self.train.max_minutes - seconds
        return duration(max(0.0, min(left, limit)))

    def _evaluation(self, row: dict[str, Any]) -> None:
        base = self.base.setdefault(str(row["prompts"]), row)  # only the same prompts compare
        for name in eval_names(row):
            value, (low, high) = row[f"eval/{name}"], row[f"eval/{name}/ci"]
            change = "" if base is row else f", {signed(value - base[f'eval/{name}'])} since {base['iteration']}"
            interval = f"[{number(low)}, {number(high)}]"
            text = f"held out at {row['iteration']}: {name} {value:.3f} {interval} on {row['prompts']} prompts{change}"
            self.console.print(text, markup=False, highlight=False)

    def _alarm(self, row: dict[str, Any]) -> None:
        self.console.print(f"alarm {row['name']}: {row['message']}", style="yellow", markup=False, highlight=False)
