"""Checkpoints are whole or absent."""

import resource
import subprocess
import sys

import pytest
import torch

from visalign import checkpoint
from visalign.types import InputError

FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from visalign import checkpoint
from visalign.types import RunError
run = Path(sys.argv[1])
checkpoint.save(run / "checkpoints" / "000001", {"w": torch.ones(10)}, {"iteration": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoint.save(run / "checkpoints" / "000002", {"w": torch.ones(100_000)}, {"iteration": 2})
except RunError as error:
    print(error)
    sys.exit(1)
"""


def test_a_full_disk_leaves_the_last_checkpoint_and_no_half(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "could not be written" in result.stdout
    assert "Free disk space" in result.stdout
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000001"]
    assert checkpoint.load(checkpoint.latest(tmp_path))[1] == {"iteration": 1}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000


def test_values_come_back_exactly(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.tensor(7.0), "c": torch.randn(2).to(torch.bfloat16)}
    checkpoint.save(tmp_path / "x", tensors, {"best": float("-inf"), "n": 3})
    loaded, state = checkpoint.load(tmp_path / "x")
    assert all(torch.equal(loaded[k], tensors[k]) for k in tensors)
    assert state == {"best": float("-inf"), "n": 3}


def test_pruning_keeps_the_newest(tmp_path):
    for number in range(5):
        checkpoint.save(tmp_path / "checkpoints" / f"{number:06d}", {"w": torch.zeros(1)}, {})
    checkpoint.prune(tmp_path, 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000003", "000004"]


def test_missing_checkpoints_are_refused(tmp_path):
    with pytest.raises(InputError, match="start without --resume"):
        checkpoint.latest(tmp_path)
    with pytest.raises(InputError, match="not a whole checkpoint"):
        checkpoint.load(tmp_path / "none")
