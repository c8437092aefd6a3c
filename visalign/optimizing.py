"""Spend compute on prompts at inference time: search over initial noise for what the rewards like best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visalign import registry
from visalign.api import load_pipeline
from visalign.config import RewardEntry
from visalign.sampling import load_lora, settings, to_prompts
from visalign.scoring import RewardBank
from visalign.search.base import Problem, Search, run
from visalign.search.outcome import Outcome, Row, Tracker, table
from visalign.search.page import write_result
from visalign.search.record import SearchFolder, replay, sampler_of
from visalign.search.state import Budget, Ledger
from visalign.section import parse
from visalign.types import InputError, Media, Prompts

if TYPE_CHECKING:
    from visalign.pipelines.pipeline import Pipeline

__all__ = ["Budget", "OptimizeResult", "Rewards", "build_search", "optimize", "replay", "reward_entries"]

Rewards = str | Sequence[str] | Mapping[str, float | RewardEntry | Mapping[str, Any]]
Progress = Callable[[Row], None]
BASELINE = "best_of_n"


@dataclass(frozen=True)
class OptimizeResult:
    """What was found.

    Attributes:
        prompts: the P prompts.
        outcome: of the method.
        baseline: of best-of-N at equal model calls, where it was asked for.
        page: optimize.html, or None where nothing was written.
    """

    prompts: Prompts
    outcome: Outcome
    baseline: Outcome | None = None
    page: Path | None = None

    @property
    def media(self) -> Media:
        """The best of each prompt, P rows."""
        assert self.outcome.best.media is not None
        return self.outcome.best.media

    def table(self) -> list[Row]:
        """Means, intervals, and the method's difference to plain samples and to the baseline: see `outcome.table`."""
        return table(self.outcome, self.baseline)


def optimize(
    prompts: str | Sequence[str] | Prompts,
    model: str | Pipeline = "shapes/sd3",
    rewards: Rewards = "shapes",
    method: str | Mapping[str, Any] = BASELINE,
    budget: Budget | Mapping[str, Any] | None = None,
    *,
    judges: Rewards = (), compare_best_of_n: bool = False,
    lora: str | Path | None = None, out: str | Path | None = None, seed: int = 0,
    num_steps: int | None = None, guidance_scale: float | None = None, call: Mapping[str, Any] | None = None,
    batch: int = 8, dtype: str = "float32", device: str = "auto", progress: Progress | None = None,
) -> OptimizeResult:  # fmt: skip
    """Search, for each prompt, the sample that the rewards like best.

    Args:
        prompts: P prompts, each searched for itself, several of them in one batch.
        model: a model's name, folder or hub id, or a loaded pipeline.
        rewards: names, or name → weight or entry; their weighted sum is maximised.
        method: a name of `visalign list searches`, or its options with `name`: {"name": "reno", "lr": 1.0}.
        budget: of each prompt: model calls, candidates, seconds; None is the method's own.
        judges: score what was found and are not maximised: they show whether the rewards were hacked.
        compare_best_of_n: afterwards spend as many model calls on best-of-N, a backward pass counted as two.
        lora: folder of a LoRA; where it lies in a run's folder, that run's settings are the defaults below.
        out: folder for pictures, every candidate, curves and page; None writes nothing.
        seed: candidate 0 is the plain sample of this seed.
        num_steps: denoising steps; None is the run's, else the pipeline's own default.
        guidance_scale: of the call; None as above.
        call: further arguments of the pipeline call; None as above.
        batch: rows of one pipeline call.
        dtype: of the weights; noise, gradients and scores stay float32.
        device: `auto` is the GPU where there is one.
        progress: called with a row after each step.

    Raises:
        InputError: the model, method, budget, a reward or a prompt is not usable; a reward lacks the gradient.
        RunError: the rewards could judge no candidate of a prompt.
    """
    asked, search = to_prompts(prompts), build_search(method)
    entries = {"rewards": reward_entries(rewards), "judges": reward_entries(judges)}
    pipeline = _pipeline(model, lora, dtype, device)
    about = {
        "model": model if isinstance(model, str) else None, "lora": None if lora is None else str(lora),
        "dtype": dtype, **vars(settings(pipeline, lora, num_steps, guidance_scale, call)), "seed": seed, "batch": batch,
        **{kind: {name: entry.model_dump() for name, entry in own.items()} for kind, own in entries.items()},
    }  # fmt: skip
    banks = {kind: RewardBank(own, pipeline.device) for kind, own in entries.items()}
    task = _Task(pipeline, asked, banks["rewards"], banks["judges"], about, progress)
    name = method if isinstance(method, str) else str(method["name"])
    return task.solve(name, search, _budget(budget, search), None if out is None else Path(out), compare_best_of_n)


def build_search(method: str | Mapping[str, Any]) -> Search:
    """A method with its options.

    Raises:
        InputError: the name or an option is unknown.

    Example:
        >>> build_search({"name": "visalign.search.reno:ReNO", "chains": 2}).width
        2
    """
    values = {"name": method} if isinstance(method, str) else dict(method)
    if "name" not in values:
        raise InputError(f"the method needs a name, as in {{name: reno, lr: 1.0}}; got {values}")
    kind = registry.load("searches", values.pop("name"))
    return kind(parse(kind.Config, values))


def reward_entries(rewards: Rewards) -> dict[str, RewardEntry]:
    """Rewards in any form, by name.

    Raises:
        InputError: an entry is neither a weight nor a mapping with `weight` and `params`.

    Example:
        >>> {name: entry.weight for name, entry in reward_entries({"palette": 2, "clip": {"weight": 0.1}}).items()}
        {'palette': 2.0, 'clip': 0.1}
    """
    if isinstance(rewards, str):
        return {rewards: RewardEntry()}
    if not isinstance(rewards, Mapping):
        return {name: RewardEntry() for name in rewards}
    return {name: _entry(value) for name, value in rewards.items()}


def _entry(value: float | RewardEntry | Mapping[str, Any]) -> RewardEntry:
    if isinstance(value, RewardEntry):
        return value
    return parse(RewardEntry, dict(value) if isinstance(value, Mapping) else {"weight": value})


def _budget(budget: Budget | Mapping[str, Any] | None, search: Search) -> Budget:
    given = budget if isinstance(budget, Budget) else parse(Budget, dict(budget or {}))
    return search.default_budget if given.unlimited else given


def _pipeline(model: str | Pipeline, lora: str | Path | None, dtype: str, device: str) -> Pipeline:
    pipeline = load_pipeline(model, dtype=dtype, device=device) if isinstance(model, str) else model  # type: ignore[arg-type]
    if lora is not None:
        load_lora(pipeline, Path(lora))
    for denoiser in pipeline.denoisers.values():
        denoiser.requires_grad_(False)  # a LoRA that was just loaded waits to be trained
    return pipeline


@dataclass(frozen=True)
class _Task:
    """What the method and the baseline that it is compared with have in common."""

    pipeline: Pipeline
    prompts: Prompts
    bank: RewardBank
    judges: RewardBank
    about: Mapping[str, Any]
    progress: Progress | None

    def solve(self, name: str, search: Search, budget: Budget, out: Path | None, compare: bool) -> OptimizeResult:
        """Search, compare, and write the page."""
        self._check(name, search, compare)
        batch = self.about["batch"]
        starts = range(0, len(self.prompts), max(1, batch // search.width))
        groups = [range(s, min(s + starts.step, len(self.prompts))) for s in starts]
        outcome, baseline = self._run(name, search, groups, [budget] * len(groups), out), None
        if compare:
            budgets = [Budget(model_calls=calls) for calls in outcome.calls]
            baseline = self._run(BASELINE, build_search(BASELINE), groups, budgets, out and out / BASELINE)
        result = OptimizeResult(self.prompts, outcome, baseline)
        return result if out is None else replace(result, page=write_result(outcome, baseline, result.table()))

    def _check(self, name: str, search: Search, compare: bool) -> None:
        if compare and name == BASELINE:
            raise InputError(f"{BASELINE} was asked to be compared with itself; leave out compare_best_of_n")
        if self.about["batch"] < 1:
            raise InputError(f"batch is {self.about['batch']}; it must be at least 1")
        if not self.bank.names:
            raise InputError("there is no reward to maximise; name one: visalign list rewards")
        flat = [reward for reward, spec in self.bank.specs.items() if not spec.differentiable]
        if search.needs_gradient and flat:
            raise InputError(
                f"{name} follows the gradient of the rewards, but {flat[0]!r} has none; use method best_of_n, or a "
                f"reward with a gradient (visalign list rewards says which have one) with {flat[0]!r} among the judges"
            )

    def _run(
        self, name: str, search: Search, groups: Sequence[range], budgets: Sequence[Budget], out: Path | None
    ) -> Outcome:
        # Groups of prompts one after the other: those of a group share pipeline calls.
        how = {**self.about, "method": {"name": name} | search.options, "budget": budgets[0].model_dump()}
        folder = None if out is None else SearchFolder(out, how, self.prompts)
        sampler, seen = sampler_of(self.pipeline, self.prompts, self.about), Tracker(self.prompts, self.judges, folder)
        total, calls = Ledger(), []
        for place, (active, budget) in enumerate(zip(groups, budgets, strict=True)):
            ledger = Ledger(batches=total.batches)  # they number the pipeline calls of all groups
            problem = Problem(sampler, self.bank, budget, active, self.about["seed"], self.about["batch"], ledger)
            for iteration, state in enumerate(run(search, problem)):
                seen.add(state, iteration)
                self._tell({"method": name, "group": place, "groups": len(groups)}, problem, seen)
            calls.append(ledger.model_calls // len(active))
            total = replace(total.plus(ledger), batches=ledger.batches)
        return seen.outcome(name, total, tuple(calls))

    def _tell(self, place: Row, problem: Problem, seen: Tracker) -> None:
        if self.progress is not None:
            ledger, count = problem.ledger, len(problem.active)
            spent = {"model_calls": ledger.model_calls // count, "seconds": ledger.seconds, "prompts": count}
            self.progress(
                {**place, **spent, "share": problem.budget.share(ledger, count), **seen.means(problem.active)}
            )
