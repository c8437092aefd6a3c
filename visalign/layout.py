"""Which rows an iteration has, and which of them this process makes, in which micro-batch of which update.

A row is one sample. Rows are permuted by (seed, iteration) before they are dealt to updates and processes, so an update
sees the same rows whatever the number of processes, and a group may span processes. Groups are integer ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from visalign.rollout import row_seed
from visalign.types import InputError, Prompts


@dataclass(frozen=True)
class Layout:
    """The rows of one iteration.

    Attributes:
        prompts: the P prompts of the iteration, one a group.
        group_size: rows a group; row r belongs to group r // group_size.
        updates: update → this process's micro-batches → global row numbers.
        update_rows: rows of each update over all processes.
    """

    prompts: Prompts
    group_size: int
    updates: tuple[tuple[tuple[int, ...], ...], ...]
    update_rows: tuple[int, ...]

    @property
    def total(self) -> int:
        """Rows over all processes."""
        return len(self.prompts) * self.group_size

    @property
    def groups(self) -> Tensor:
        """Group id of every row, (total,) int64."""
        return torch.arange(self.total) // self.group_size

    def own_rows(self) -> list[int]:
        """This process's rows in the order in which it makes them."""
        return [row for update in self.updates for micro in update for row in micro]

    def micro_batches(self) -> Iterator[tuple[int, ...]]:
        """This process's micro-batches in order."""
        for update in self.updates:
            yield from update

    def row_prompts(self, rows: Sequence[int]) -> Prompts:
        """The prompts of rows."""
        return self.prompts.take([r // self.group_size for r in rows])

    def seeds(self, rows: Sequence[int], seed: int, stream: str, *, per_group: bool = False) -> list[int]:
        """One seed a row, from (seed, stream, prompt id, member); the same for a whole group if `per_group`."""
        ids = self.prompts.ids
        return [
            row_seed(seed, stream, ids[r // self.group_size], self._member(r, per_group)) for r in rows
        ]  # fmt: skip

    def _member(self, row: int, per_group: bool) -> int:
        group, member = divmod(row, self.group_size)
        # A prompt that occurs twice in an iteration still has members of its own.
        occurrence = self.prompts.ids[:group].count(self.prompts.ids[group])
        return occurrence * self.group_size + (0 if per_group else member)


def permutation(length: int, seed: int, stream: str) -> list[int]:
    """A permutation that is a function of its arguments alone."""
    generator = torch.Generator().manual_seed(row_seed(seed, f"permutation/{stream}", length, 0))
    return torch.randperm(length, generator=generator).tolist()


def select(total: int, count: int, iteration: int, seed: int) -> list[int]:
    """The items of an iteration: epochs without repetition, each in an order of its own."""
    chosen = []
    for position in range(iteration * count, (iteration + 1) * count):
        epoch, place = divmod(position, total)
        chosen.append(permutation(total, seed, f"epoch/{epoch}")[place])
    return chosen


def plan_rows(
    prompts: Prompts,
    group_size: int,
    *,
    updates: int,
    micro_batch: int,
    whole_groups: bool,
    seed: int,
    iteration: int,
    rank: int,
    world: int,
) -> Layout:
    """Deal the rows of an iteration to updates, processes and micro-batches.

    Raises:
        InputError: an update would be empty, or a group does not fit into a micro-batch that needs it whole.
    """
    unit = group_size if whole_groups else 1
    units = len(prompts) * group_size // unit
    if units < updates * world:
        what = "groups" if whole_groups else "rows"
        raise InputError(
            f"{units} {what} cannot be split into {updates} updates on {world} processes; lower train.updates"
        )
    if micro_batch < unit:
        raise InputError(f"this method needs a group of {group_size} in one micro-batch; raise train.micro_batch")
    order = permutation(units, seed, f"rows/{iteration}")
    bounds = [units * u // updates for u in range(updates + 1)]
    parts = [order[a:b] for a, b in pairwise(bounds)]
    own = [[u * unit + i for u in part[rank::world] for i in range(unit)] for part in parts]
    size = micro_batch // unit * unit
    micro = tuple(tuple(tuple(rows[i : i + size]) for i in range(0, len(rows), size)) for rows in own)
    return Layout(prompts, group_size, micro, tuple(len(part) * unit for part in parts))
