"""Best of N, the baseline of every search: candidate m of a prompt is the plain sample of seed + m."""

from __future__ import annotations

from typing import ClassVar, Literal

from visalign.search.base import Problem, Search
from visalign.search.state import Budget, State
from visalign.section import Section


class BestOfNConfig(Section):
    """Options of `best_of_n`: none; N is the budget's."""

    name: Literal["best_of_n"] = "best_of_n"


class BestOfN(Search):
    """Plain samples with other seeds, with any reward."""

    Config = BestOfNConfig
    default_budget: ClassVar[Budget] = Budget(candidates=16)

    config: BestOfNConfig

    def __init__(self, config: BestOfNConfig) -> None:
        self.config = config

    @property
    def width(self) -> int:
        """1."""
        return 1

    def start(self, problem: Problem) -> State:
        """No candidate."""
        return problem.seeded(0, 0)

    def goes_on(self, state: State, problem: Problem) -> bool:
        """While one more sample of each prompt fits."""
        return problem.room() >= 1

    def step(self, state: State, problem: Problem, iteration: int) -> State:
        """The next seeds, as many as fill a batch and as the budget allows."""
        prompts = len(problem.active)
        count = min(max(1, problem.batch // prompts), problem.room())
        return problem.evaluate(problem.seeded(problem.ledger.candidates // prompts, count))
