"""Checkpoints that are whole or absent: safetensors and JSON, written to a temporary name and renamed.

A checkpoint holds all that the next iteration depends on: adapter, snapshots, optimiser moments, counters, the
monitor's memory. Random draws are functions of the seed and the counters, so there is no generator to save.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visalign.types import InputError, RunError


def save(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint as a folder; it appears as a whole.

    Raises:
        RunError: the disk is full or not writable; nothing half-written is left.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / "tensors.safetensors")
        (temporary / "state.json").write_text(json.dumps(state))
        _flush(temporary)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"checkpoint {str(folder)!r} could not be written: {error}. Free disk space, then --resume"
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint.

    Raises:
        InputError: it is missing or torn.
    """
    try:
        return load_file(folder / "tensors.safetensors"), json.loads((folder / "state.json").read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{str(folder)!r} is not a whole checkpoint: {error}. Resume from an earlier one") from error


def latest(run: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
        InputError: the run has none.
    """
    found = sorted(p for p in (run / "checkpoints").glob("[0-9]*") if p.is_dir())
    if not found:
        raise InputError(f"no checkpoint in {str(run / 'checkpoints')!r}; start without --resume")
    return found[-1]


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` numbered checkpoints."""
    for old in sorted((run / "checkpoints").glob("[0-9]*"))[:-keep]:
        shutil.rmtree(old)
