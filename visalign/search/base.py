"""What a search is: one step from candidates to candidates, under a budget. It has no I/O, no files, no device code.

A `Sampler` turns noise into media, a `Problem` has it sample and judge and counts the cost, a `Search` decides what is
sampled next, and `run` takes its steps until the budget is spent. Everything is drawn from (seed, prompt, candidate,
iteration), so that a search does not depend on how its rows are batched.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from visalign.search.state import Budget, Ledger, State
from visalign.section import Section
from visalign.types import InputError, Media, Prompts, RunError, Scores

if TYPE_CHECKING:
    from visalign.scoring import RewardBank


class Sampler(ABC):
    """A frozen sampler: initial noise in, media out.

    Attributes:
        prompts: all that may be asked.
        calls: denoiser evaluations of one sample.
    """

    prompts: Prompts
    calls: int

    @abstractmethod
    def noise(self, prompts: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """The noise that rows of these seeds start from, (K, *S) float32 of unit variance, on the CPU."""

    @abstractmethod
    def media(
        self, prompts: Sequence[int], seeds: Sequence[int], noise: Tensor | None, *, grad: bool, checkpoint: bool
    ) -> Media:
        """Samples of K rows.

        Args:
            prompts: the prompt of each.
            seeds: of all that is drawn on the way.
            noise: what they start from, (K, *S); None is that of the seeds.
            grad: whether autograd records, from the noise to the pixels.
            checkpoint: keep no activations of the denoiser; the backward pass computes them again, step by step.
        """


@dataclass(frozen=True)
class Problem:
    """What a search works on.

    Attributes:
        sampler: makes the samples.
        bank: judges them.
        budget: of each prompt.
        active: the prompts that are searched together, P of them.
        seed: of the first candidate.
        batch: rows of one pipeline call.
        ledger: what was spent on the active prompts; counted here and nowhere else.
    """

    sampler: Sampler
    bank: RewardBank
    budget: Budget
    active: Sequence[int]
    seed: int = 0
    batch: int = 8
    ledger: Ledger = field(default_factory=Ledger)

    def seeded(self, first: int, count: int) -> State:
        """For each prompt the candidates m = first … first + count − 1 of plain sampling, whose seeds are seed + m."""
        members = range(first, first + count)
        rows = [(prompt, self.seed + m) for prompt in self.active for m in members]
        return State.fresh([prompt for prompt, _ in rows], [seed for _, seed in rows])

    def room(self, *, ahead_calls: int = 0, ahead_candidates: int = 0) -> int:
        """How many more plain samples of each prompt the budget allows: see `Budget.room`."""
        return self.budget.room(
            self.ledger, len(self.active), self.sampler.calls,
            ahead_calls=ahead_calls, ahead_candidates=ahead_candidates,
        )  # fmt: skip

    def cost(self, rows: int, *, checkpoint: bool) -> int:
        """Model calls of `gradients` for so many rows."""
        ledger = Ledger()
        ledger.spend(rows, self.sampler.calls, grad=True, repeat=checkpoint)
        return ledger.model_calls

    def evaluate(self, state: State) -> State:
        """The candidates sampled and judged."""
        state = self._numbered(state)
        return State.join([self._sampled(part, grad=False, checkpoint=False)[0] for part in self._parts(state)])

    def gradients(self, state: State, *, checkpoint: bool) -> tuple[State, Tensor]:
        """The candidates sampled and judged, and ∇ of each one's value with respect to its noise, (K, *S) float32.

        Args:
            state: candidates with noise.
            checkpoint: see `Sampler.media`.

        Raises:
            RunError: a gradient is not finite.
        """
        state = self._numbered(state)
        parts = [self._sampled(part, grad=True, checkpoint=checkpoint) for part in self._parts(state)]
        return State.join([part for part, _ in parts]), torch.cat([gradient for _, gradient in parts])

    def _numbered(self, state: State) -> State:
        # A step makes as many candidates of each prompt, so what was done for all tells what was done for one.
        ledger, count, prompts = self.ledger, len(self.active), state.prompts.tolist()
        place = torch.tensor([prompts[:row].count(prompt) for row, prompt in enumerate(prompts)])
        known = ledger.model_calls // count + (place + 1) * self.sampler.calls
        return replace(state, ids=ledger.candidates // count + place, model_calls=known)

    def _parts(self, state: State) -> Iterator[State]:
        starts = range(0, len(state), self.batch)
        return (state.take(range(start, min(start + self.batch, len(state)))) for start in starts)

    def _sampled(self, part: State, *, grad: bool, checkpoint: bool) -> tuple[State, Tensor]:
        prompts, seeds = part.prompts.tolist(), part.seeds.tolist()
        noise = None if part.noise is None else part.noise.detach().requires_grad_(grad)
        asked = self.sampler.prompts.take(prompts)
        with torch.set_grad_enabled(grad):
            media = self.sampler.media(prompts, seeds, noise, grad=grad, checkpoint=checkpoint)
            scores = self.bank.score_with_grad(media, asked) if grad else self.bank.score(media, asked)
        gradient = torch.empty(0) if noise is None or not grad else _gradient(scores, noise, asked)
        self.ledger.spend(len(part), self.sampler.calls, grad=grad, repeat=checkpoint)
        return self._judged(part, scores, media), gradient

    def _judged(self, part: State, scores: Scores, media: Media) -> State:
        values = torch.where(scores.valid, scores.values, -math.inf).detach().cpu()
        return replace(
            part,
            values=values,
            components={name: v.detach().cpu() for name, v in scores.components.items()},
            batch=torch.full_like(part.ids, self.ledger.batches - 1),
            media=Media(media.pixels.detach().cpu(), media.fps),
        )


def _gradient(scores: Scores, noise: Tensor, prompts: Prompts) -> Tensor:
    gradient = torch.autograd.grad(scores.values.sum(), noise)[0]
    bad = (~gradient.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise RunError(
            f"the gradient of the reward is not finite for the prompt {prompts.texts[bad[0]]!r}; "
            f"use dtype float32 or bfloat16, or lower the search's lr"
        )
    return gradient


class Search(ABC):
    """An inference-time method. A final class fills this in; all that it remembers stands in the State."""

    Config: ClassVar[type[Section]]
    needs_gradient: ClassVar[bool] = False
    """Whether the rewards must be differentiable."""
    default_budget: ClassVar[Budget]
    """Where none is given."""
    config: Section

    @property
    def options(self) -> dict[str, Any]:
        """Its options without the name, as plain values."""
        return self.config.model_dump(mode="json", exclude={"name"})

    @property
    @abstractmethod
    def width(self) -> int:
        """Candidates of each prompt that one step makes at least."""

    @abstractmethod
    def start(self, problem: Problem) -> State:
        """What the first step is given; nothing is evaluated yet."""

    @abstractmethod
    def goes_on(self, state: State, problem: Problem) -> bool:
        """Whether another step has something to do that the budget allows."""

    @abstractmethod
    def step(self, state: State, problem: Problem, iteration: int) -> State:
        """One iteration: the candidates that it made, all evaluated, with as many of each prompt.

        Args:
            state: what the last step returned.
            problem: samples, judges and counts.
            iteration: 0, 1, 2, …; with the problem's seed the key of what the step itself draws.
        """


def run(search: Search, problem: Problem) -> Iterator[State]:
    """The steps of a search until its budget is spent.

    Raises:
        InputError: the budget does not reach for the first step.
    """
    state, iteration = search.start(problem), 0
    if not search.goes_on(state, problem):
        raise InputError(
            f"the budget does not reach for {search.width} candidates of {problem.sampler.calls} model calls each; "
            f"raise it to at least {search.width * problem.sampler.calls} model calls and {search.width} candidates"
        )
    while search.goes_on(state, problem):
        begun = time.perf_counter()
        state = search.step(state, problem, iteration)
        problem.ledger.seconds += time.perf_counter() - begun
        yield state
        iteration += 1
