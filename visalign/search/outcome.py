"""What a search found: the best of each prompt, the way there, and how it compares with others at equal cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visalign.evaluation import difference
from visalign.search.curves import Curve, averaged
from visalign.search.record import Kind, SearchFolder
from visalign.search.state import Ledger, State
from visalign.statistics import mean_interval
from visalign.types import Prompts, RunError

if TYPE_CHECKING:
    from visalign.scoring import RewardBank

Row = dict[str, Any]
PLAIN = "plain sample"


@dataclass(frozen=True)
class Outcome:
    """What one method found.

    Attributes:
        method: its name.
        first: P candidates, the plain sample of each prompt, with what the judges say of it.
        best: P candidates, the best of each prompt by the rewards alone, with what the judges say of it.
        curve: the best so far against model calls a prompt, averaged over the prompts.
        ledger: what was spent on all prompts.
        calls: model calls a prompt, in each group of prompts that were searched together.
        folder: where its candidates are; None where they were not written.
    """

    method: str
    first: State
    best: State
    curve: Curve
    ledger: Ledger
    calls: tuple[int, ...]
    folder: SearchFolder | None = None


def scores(found: State) -> dict[str, Tensor]:
    """Name → (K,): `value`, every reward and every judge; NaN where not judged."""
    return {"value": found.values.masked_fill(found.values.isinf(), torch.nan), **found.components}


def shown(outcome: Outcome) -> list[str]:
    """The scores to show: no parts of rewards, and of a single reward not the value that it is."""
    names = [name for name in outcome.curve[0] if name != "model_calls" and "/" not in name]
    same = all(point["value"] == point[names[1]] for point in outcome.curve)
    return names[1:] if same else names


class Tracker:
    """Follows a search: keeps each prompt's first and best candidate, its curve, and writes the folder.

    Args:
        prompts: all prompts.
        judges: score what is kept; they are not maximised.
        folder: where candidates are written; None keeps no record.
    """

    def __init__(self, prompts: Prompts, judges: RewardBank, folder: SearchFolder | None) -> None:
        self.prompts, self.judges, self.folder = prompts, judges, folder
        self.first: dict[int, State] = {}
        self.best: dict[int, State] = {}
        self.curves: dict[int, list[dict[str, float]]] = {}

    def add(self, state: State, iteration: int) -> None:
        """Note the candidates of a step."""
        if self.folder is not None:
            self.folder.add(state, iteration)
        state, prompts = replace(state, own={}), state.prompts.tolist()
        first = [prompts.index(prompt) for prompt in dict.fromkeys(prompts) if prompt not in self.first]
        self._keep("first", self.first, state, first)
        better = self._better(state)
        for row, found in zip(better, self._keep("best", self.best, state, better), strict=True):
            self._point(found, int(state.model_calls[row]))
        for prompt in dict.fromkeys(prompts):
            if prompt in self.best:
                self._point(self.best[prompt], int(state.model_calls[state.prompts == prompt][-1]))

    def _better(self, state: State) -> list[int]:
        # The rows that are better than all before them.
        best, rows = {prompt: float(one.values) for prompt, one in self.best.items()}, []
        for row, (prompt, value) in enumerate(zip(state.prompts.tolist(), state.values.tolist(), strict=True)):
            if value > best.get(prompt, -math.inf):
                best[prompt] = value
                rows.append(row)
        return rows

    def _keep(self, kind: Kind, kept: dict[int, State], state: State, rows: Sequence[int]) -> list[State]:
        # Have rows judged and keep the last of each prompt; returns them one by one.
        judged = self._judged(state.take(rows)) if rows else state.take([])
        found = [judged.take([place]) for place in range(len(rows))]
        new = {int(one.prompts): one for one in found}
        kept |= new
        if self.folder is not None and new:
            self.folder.show(kind, State.join(list(new.values())))
        return found

    def _point(self, best: State, calls: int) -> None:
        curve = self.curves.setdefault(int(best.prompts), [])
        if not curve or curve[-1]["model_calls"] < calls:
            point = {name: float(v) for name, v in scores(best).items()}
            curve.append({"model_calls": calls, **point})

    def _judged(self, state: State) -> State:
        assert state.media is not None
        said = self.judges.score(state.media, self.prompts.take(state.prompts.tolist())) if self.judges.names else None
        return state if said is None else replace(state, components={**state.components, **said.components})

    def means(self, active: Sequence[int]) -> dict[str, float]:
        """Mean value of the plain samples and of the best so far, NaN where none is judged."""
        values = {
            "first": [self.first[p].values for p in active],
            "best": [self.best[p].values for p in active if p in self.best],
        }
        return {kind: float(torch.cat(v).mean()) if v else torch.nan for kind, v in values.items()}

    def outcome(self, method: str, ledger: Ledger, calls: tuple[int, ...]) -> Outcome:
        """The end.

        Raises:
            RunError: the rewards could judge no candidate of a prompt.
        """
        unjudged = [p for p in self.first if p not in self.best]
        if unjudged:
            raise RunError(
                f"the rewards could judge no candidate of the prompt {self.prompts.texts[unjudged[0]]!r} "
                f"({len(unjudged)} of {len(self.first)} prompts); leave it out, or choose rewards that can judge it"
            )
        first, best = ([kept[p] for p in sorted(kept)] for kept in (self.first, self.best))
        curve = averaged([self.curves[p] for p in sorted(self.curves)])
        return Outcome(method, State.join(first), State.join(best), curve, ledger, calls, self.folder)


def table(outcome: Outcome, baseline: Outcome | None) -> list[Row]:
    """A row for each score and contestant: plain samples, the baseline if there is one, and the method.

    Returns:
        Rows with `reward`, `name`, `mean`; of several prompts also `ci`, and for all but the method how the method does
        against it on the same prompts: `delta`, `delta_ci`, `win_rate`, `win_rate_ci`.
    """
    contestants = {PLAIN: scores(outcome.first)}
    contestants |= {} if baseline is None else {baseline.method: scores(baseline.best)}
    found = scores(outcome.best)
    return [
        row
        for reward in found
        for name, other in (*contestants.items(), (outcome.method, found))
        for row in _compared(reward, name, other[reward], found[reward])
    ]


def _compared(reward: str, name: str, other: Tensor, found: Tensor) -> Iterator[Row]:
    judged = ~other.isnan() & ~found.isnan()
    if not bool(judged.any()):
        return
    mean, low, high = mean_interval(other[judged])
    row: Row = {"reward": reward, "name": name, "mean": mean}
    if int(judged.sum()) > 1:
        row["ci"] = [low, high]
        if other is not found:
            both = difference({reward: other}, {reward: found}, None)[reward]
            row |= {key: both[key] for key in ("delta", "delta_ci", "win_rate", "win_rate_ci")}
    yield row
