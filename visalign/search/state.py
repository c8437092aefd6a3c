"""The values of a search: a State of K candidates, a Ledger of what they cost, a Budget of what they may cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from visalign.section import Section
from visalign.types import Media


@dataclass(frozen=True)
class State:
    """K candidates, those of one prompt in the order of their ids; all tensors are on the CPU.

    Every field is gathered by `take` and by `join`, so a method never indexes one by hand and can forget none.

    Attributes:
        prompts: (K,) int64, the prompt of each.
        seeds: (K,) int64, the key of all that is drawn for it.
        ids: (K,) int64, its number among the candidates of its prompt; −1 before it is evaluated.
        parents: (K,) int64, the candidate that it came from; −1 for none.
        noise: (K, *S) float32, initial noise of unit variance; None where each starts from the noise of its seed.
        values: (K,) float32, what is maximised: the weighted sum of the rewards; −inf where there is no judgement.
        components: name → (K,) float32, every reward's own value, NaN where it could not judge.
        model_calls: (K,) int64, calls spent on its prompt by the time it is judged, its own gradient left out.
        batch: (K,) int64, the pipeline call that made it; its rows repeat bitwise only together.
        media: K rows; None before they are evaluated.
        own: name → (K, …), what a method carries along: momentum, log-weights, a next proposal.
    """

    prompts: Tensor
    seeds: Tensor
    ids: Tensor
    parents: Tensor
    noise: Tensor | None
    values: Tensor
    components: Mapping[str, Tensor]
    model_calls: Tensor
    batch: Tensor
    media: Media | None = None
    own: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Tensor | Sequence[int]) -> State:
        """The candidates at `rows`, in that order; rows may repeat.

        Example:
            >>> State.fresh([0, 0, 1], [5, 6, 5]).take([2, 1]).seeds
            tensor([5, 6])
        """
        index = torch.as_tensor(rows, dtype=torch.long)
        return State(**{f.name: _picked(vars(self)[f.name], index) for f in fields(self)})

    @staticmethod
    def fresh(prompts: Sequence[int], seeds: Sequence[int]) -> State:
        """Candidates that only have a prompt and a seed."""
        none = torch.full((len(seeds),), -1)
        return State(
            prompts=torch.tensor(prompts, dtype=torch.long),
            seeds=torch.tensor(seeds, dtype=torch.long),
            ids=none,
            parents=none,
            noise=None,
            values=torch.full((len(seeds),), -math.inf),
            components={},
            model_calls=torch.zeros_like(none),
            batch=none,
        )

    @staticmethod
    def join(parts: Sequence[State]) -> State:
        """Candidates one after the other; all parts hold the same fields."""
        return State(**{f.name: _joined([vars(p)[f.name] for p in parts]) for f in fields(State)})


def _picked(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Mapping):
        return {name: v[rows] for name, v in value.items()}
    if isinstance(value, Media):
        return value.take(rows)
    return None if value is None else value[rows]


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {name: torch.cat([v[name] for v in values]) for name in first}
    if isinstance(first, Media):
        return Media(torch.cat([v.pixels for v in values]), first.fps)
    return None if first is None else torch.cat(list(values))


@dataclass
class Ledger:
    """What a search has spent, counted by rows.

    Attributes:
        forwards: denoiser evaluations, those that checkpointing repeats in the backward pass included. A step under
            classifier-free guidance counts as one.
        backwards: denoiser evaluations that were differentiated.
        decodes: decoded samples; `decode_backwards` those differentiated.
        rewards: judged samples; `reward_backwards` those differentiated.
        candidates: evaluated candidates.
        batches: pipeline calls.
        seconds: wall time.
    """

    forwards: int = 0
    backwards: int = 0
    decodes: int = 0
    decode_backwards: int = 0
    rewards: int = 0
    reward_backwards: int = 0
    candidates: int = 0
    batches: int = 0
    seconds: float = 0.0

    @property
    def model_calls(self) -> int:
        """Forward passes, with a backward pass as two of them.

        Example:
            >>> Ledger(forwards=16, backwards=8).model_calls
            32
        """
        return self.forwards + 2 * self.backwards

    def spend(self, rows: int, calls: int, *, grad: bool = False, repeat: bool = False) -> None:
        """Count one pipeline call.

        Args:
            rows: samples of the call.
            calls: denoiser evaluations of each.
            grad: whether it was differentiated.
            repeat: whether the backward pass evaluated the denoiser again (checkpointing).
        """
        self.batches += 1
        self.candidates += rows
        self.decodes += rows
        self.rewards += rows
        self.forwards += rows * calls * (2 if grad and repeat else 1)
        self.backwards += rows * calls * grad
        self.decode_backwards += rows * grad
        self.reward_backwards += rows * grad

    def plus(self, other: Ledger) -> Ledger:
        """What both have spent."""
        return replace(self, **{f.name: vars(self)[f.name] + vars(other)[f.name] for f in fields(self)})


class Budget(Section):
    """What a search may spend on one prompt; the first limit that is reached ends it."""

    model_calls: int | None = Field(None, ge=1)
    """Denoiser evaluations, a backward pass counted as two."""
    candidates: int | None = Field(None, ge=1)
    """Samples that are decoded and judged."""
    seconds: float | None = Field(None, gt=0)
    """Wall time; the step in which it passes is finished."""

    @property
    def unlimited(self) -> bool:
        """Whether no limit is set."""
        return self.model_calls is None and self.candidates is None and self.seconds is None

    def room(self, spent: Ledger, prompts: int, calls: int, *, ahead_calls: int = 0, ahead_candidates: int = 0) -> int:
        """How many more plain samples fit, for each of the prompts that are searched together.

        Args:
            spent: so far, on all of them.
            prompts: how many they are.
            calls: denoiser evaluations of one sample.
            ahead_calls: about to be spent on all of them.
            ahead_candidates: about to be made for all of them.

        Example:
            >>> Budget(model_calls=20).room(Ledger(forwards=16), prompts=2, calls=4)
            3
        """
        rooms = [_PLENTY if self.seconds is None or spent.seconds < self.seconds * prompts else 0]
        if self.model_calls is not None:
            left = self.model_calls * prompts - spent.model_calls - ahead_calls
            rooms.append(left // (calls * prompts))
        if self.candidates is not None:
            rooms.append((self.candidates * prompts - spent.candidates - ahead_candidates) // prompts)
        return max(0, min(rooms))

    def share(self, spent: Ledger, prompts: int) -> float:
        """How much of it is spent, in [0, 1]."""
        limits = ((self.model_calls, spent.model_calls), (self.candidates, spent.candidates))
        shares = [done / (limit * prompts) for limit, done in limits if limit is not None]
        shares += [] if self.seconds is None else [spent.seconds / (self.seconds * prompts)]
        return min(1.0, max(shares))


_PLENTY = 2**31
