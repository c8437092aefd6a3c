"""Every example in the bank's docstrings runs, and every reward's file has one."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

from visalign import registry

BANK = Path(__file__).parents[2] / "rewards"
FILES = {path.stem for path in BANK.glob("*.py") if ">>>" in path.read_text(encoding="utf-8")}
REWARDS = {target.partition(":")[0].rpartition(".")[2] for target in registry.TABLES["rewards"].values()}


def test_every_reward_has_an_example():
    assert REWARDS <= FILES


@pytest.mark.parametrize("name", sorted(FILES))
def test_examples_run(name):
    result = doctest.testmod(import_module(f"visalign.rewards.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
