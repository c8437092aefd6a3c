"""Experiment trackers of accelerate by name; metrics.jsonl is written whether or not there are any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visalign.section import nearest
from visalign.types import InputError


class Trackers:
    """Some of accelerate's trackers, fed with the numbers of every row.

    Raises:
        InputError: a name is unknown, or its package is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self.trackers = [_open(name, folder) for name in names]

    def log(self, row: dict[str, Any]) -> None:
        """Send the numbers of a row."""
        values = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "iteration"}
        for tracker in self.trackers:
            tracker.log(values, step=row["iteration"])

    def close(self) -> None:
        """Flush and finish."""
        for tracker in self.trackers:
            tracker.finish()


def _open(name: str, folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    if name not in LOGGER_TYPE_TO_CLASS:
        known = sorted(LOGGER_TYPE_TO_CLASS)
        raise InputError(f"unknown tracker {name!r}.{nearest(name, known)} Known: {', '.join(known)}")
    PartialState()
    kind = LOGGER_TYPE_TO_CLASS[name]
    try:
        tracker = kind(folder.name, str(folder)) if kind.requires_logging_directory else kind(folder.name)
        tracker.start()
    except ImportError as error:
        raise InputError(
            f"tracker {name!r} is not installed ({error}); add it, as in: uv pip install {name}"
        ) from error
    return tracker
