"""Real processes: kill -9 at any moment and resume; one process against two."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
import yaml

from tests.test_training import rows
from visalign import checkpoint
from visalign.config import dump_yaml
from visalign.training import train

SCRIPT = """
import sys
from visalign.training import train
resume = "latest" if sys.argv[2] == "resume" else None
train(sys.argv[1], resume=resume, progress=lambda row: print(row["kind"], row["iteration"], flush=True))
"""


def start(config_file, mode, **environment):
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    command = [sys.executable, "-c", SCRIPT, str(config_file), mode]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def write_config(config, path):
    path.write_text(dump_yaml(config))
    return path


def kill_at(process, line):
    """Read the child's progress and kill -9 it right after `line`, in the middle of whatever comes next."""
    seen = []
    for text in process.stdout:
        seen.append(text.strip())
        if text.strip() == line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL, seen


def test_two_kills_by_the_system_leave_the_same_run(small_config, tmp_path):
    sections = {"train": {"iterations": 5}}
    straight = train(small_config("grpo", out="straight", **sections))
    file = write_config(small_config("grpo", out="killed", **sections), tmp_path / "killed.yaml")
    kill_at(start(file, "new"), "train 2")
    kill_at(start(file, "resume"), "train 4")
    last = start(file, "resume")
    last.communicate()
    assert last.returncode == 0
    run = tmp_path / "killed"
    ours, theirs = (checkpoint.load(checkpoint.latest(r))[0] for r in (straight.run, run))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert rows(run) == rows(straight.run)


@pytest.mark.parametrize("method", ["grpo", "nft"])
def test_two_processes_equal_one(method, small_config, tmp_path):
    rollout = {"num_steps": 4, "kernel": "flow_sde", "policy": "old" if method == "nft" else "current"}
    sections = {"train": {"iterations": 3, "updates": 1, "group_size": 3}, "rollout": rollout}
    alone = train(small_config(method, out="alone", **sections))
    file = write_config(small_config(method, out="both", **sections), tmp_path / "both.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pair = [start(file, "new", RANK=str(r), LOCAL_RANK=str(r), **shared) for r in range(2)]
    for process in pair:
        process.communicate()
    assert [p.returncode for p in pair] == [0, 0]
    run = tmp_path / "both"
    for one, two in zip(rows(alone.run, "train"), rows(run, "train"), strict=True):
        assert one["reward"] == pytest.approx(two["reward"], abs=1e-6)
        assert one["diversity"] == pytest.approx(two["diversity"], abs=1e-6)
    ours, theirs = (checkpoint.load(checkpoint.latest(r))[0] for r in (alone.run, run))
    for key in (k for k in ours if k.startswith("policy|")):
        assert torch.allclose(ours[key], theirs[key], atol=1e-5, rtol=0), key
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["group_size"] == 3
