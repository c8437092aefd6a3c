"""Held-out evaluation: the same prompts and seeds every time, one number a prompt and reward, with intervals.

Scores are NaN where a reward could not judge; such rows are left out of every mean and never counted as 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visalign.rollout import row_seed
from visalign.statistics import mean_interval, paired_difference, win_rate
from visalign.types import Conditioning, Media, Prompts, RunError

if TYPE_CHECKING:
    from visalign.pipelines.pipeline import Pipeline
    from visalign.scoring import RewardBank


@dataclass(frozen=True)
class Sample:
    """One kept sample.

    Attributes:
        prompt: what was asked.
        seed: of its initial noise.
        scores: name → value, None where the reward could not judge.
        media: the one sample.
    """

    prompt: str
    seed: int
    scores: Mapping[str, float | None]
    media: Media


@dataclass(frozen=True)
class Evaluation:
    """What rewards say of P prompts, one sample each.

    Attributes:
        prompts: the P prompts, with their columns.
        seeds: one a prompt; sample p started from the noise of seed p alone.
        scores: name → (P,) float32, NaN where invalid: every reward, and its parts under `name/part`.
        media: the kept samples, K of them.
        kept: rows of the kept samples: the first of `alternating`, so that any subset that it chose keeps the same.
    """

    prompts: Prompts
    seeds: tuple[int, ...]
    scores: Mapping[str, Tensor]
    media: Media
    kept: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def tags(self) -> tuple[str, ...] | None:
        """The category of each prompt, where every prompt has a column `tag`."""
        tagged = all("tag" in c for c in self.prompts.columns)
        return tuple(str(c["tag"]) for c in self.prompts.columns) if tagged else None

    def mean(self, name: str) -> float:
        """A reward's mean; with categories the mean of the category means, GenEval's overall score."""
        return self.interval(name)[0]

    def interval(self, name: str) -> tuple[float, float, float]:
        """(mean, low, high) with the 95 % interval."""
        return mean_interval(self.scores[name], strata=self.tags)

    def categories(self, name: str) -> dict[str, float]:
        """Mean of each category that has a valid score; empty without categories."""
        rows: dict[str, list[float]] = {}
        for tag, value in zip(self.tags or (), self.scores[name].tolist(), strict=False):
            if value == value:  # not NaN
                rows.setdefault(tag, []).append(value)
        return {tag: sum(values) / len(values) for tag, values in rows.items()}

    def headline(self, bank: RewardBank) -> float:
        """The weighted sum of the bank's rewards, each by its mean: what the best checkpoint is chosen by."""
        return sum(weight * self.mean(name) for name, weight in bank.weights.items())

    def row(self) -> dict[str, Any]:
        """The eval row of metrics.jsonl without its kind and iteration: means, intervals and categories."""
        row: dict[str, Any] = {"prompts": len(self)}
        for name in self.scores:
            mean, low, high = self.interval(name)
            row |= {f"eval/{name}": mean, f"eval/{name}/ci": [low, high] if low == low else [mean, mean]}
            row |= {f"eval/{name}/{tag}": value for tag, value in self.categories(name).items()}
        return row

    def samples(self) -> list[Sample]:
        """The kept samples with their prompts, seeds and scores."""
        return [
            Sample(
                self.prompts.texts[row],
                self.seeds[row],
                {name: _number(values[row]) for name, values in self.scores.items()},
                self.media.take([place]),
            )
            for place, row in enumerate(self.kept)
        ]


def _number(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)


def evaluate(
    pipeline: Pipeline,
    prompts: Prompts,
    bank: RewardBank,
    *,
    seed: int,
    num_steps: int,
    guidance_scale: float,
    batch: int,
    call: Mapping[str, Any],
    keep_images: int,
) -> Evaluation:
    """Generate one sample a prompt with the scheduler's own steps, and score it.

    Args:
        pipeline: the model, with the weights to evaluate.
        prompts: P prompts.
        bank: rewards to ask.
        seed: with a prompt's text it decides its noise, whatever the batch and the other prompts.
        num_steps: denoising steps.
        guidance_scale: of the call.
        batch: rows of one call.
        call: fixed arguments of the pipeline call.
        keep_images: how many samples to keep, in an order in which the categories alternate.

    Raises:
        RunError: a reward could judge none of the samples.
    """
    seeds, kept = eval_seeds(prompts, seed), alternating(prompts)[:keep_images]
    scored: list[Mapping[str, Tensor]] = []
    pictures: dict[int, Tensor] = {}
    fps = 0.0
    for rows in _batches(len(prompts), batch):
        conditioning = Conditioning(prompts.take(rows), guidance_scale, call)
        media = pipeline.rollout(conditioning, [seeds[r] for r in rows], num_steps).media
        assert media is not None
        scored.append(bank.score(media, conditioning.prompts).components)
        pictures |= {row: media.pixels[place].cpu() for place, row in enumerate(rows) if row in kept}
        fps = media.fps
    scores = {name: torch.cat([part[name] for part in scored]) for name in scored[0]}
    _check_judged(scores)
    shown = torch.stack([pictures[row] for row in kept]) if kept else torch.empty(0, 1, 3, 1, 1)
    return Evaluation(prompts, seeds, scores, Media(shown, fps), kept)


def eval_seeds(prompts: Prompts, seed: int) -> tuple[int, ...]:
    """One seed a prompt, a function of (seed, prompt, how often it stood before)."""
    ids = prompts.ids
    return tuple(row_seed(seed, "eval", name, ids[:place].count(name)) for place, name in enumerate(ids))


def alternating(prompts: Prompts) -> tuple[int, ...]:
    """All rows in an order in which the categories alternate, so that any number of the first ones covers them evenly.

    Example:
        >>> columns = ({"tag": "a"}, {"tag": "a"}, {"tag": "b"}, {"tag": "b"})
        >>> alternating(Prompts(("p", "q", "r", "s"), columns))
        (0, 2, 1, 3)
    """
    places: dict[str, int] = {}
    keys = []
    for row, columns in enumerate(prompts.columns):
        tag = str(columns.get("tag", ""))
        places[tag] = places.get(tag, -1) + 1
        keys.append((places[tag], row))
    return tuple(row for _, row in sorted(keys))


def _batches(total: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, total)) for start in range(0, total, size))


def _check_judged(scores: Mapping[str, Tensor]) -> None:
    for name, values in scores.items():
        if bool(values.isnan().all()):
            raise RunError(
                f"reward {name!r} could judge none of {len(values)} held-out samples; leave it out, or give prompts "
                f"that it can judge"
            )


def difference(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], tags: Sequence[str] | None) -> dict[str, Any]:
    """Each reward before and after, on the same prompts and seeds.

    Args:
        base: name → (P,) scores of the base.
        tuned: name → (P,) scores after.
        tags: category of each prompt, or None.

    Returns:
        Name → {base, tuned, delta, delta_ci, win_rate, win_rate_ci}; intervals are 95 %, the difference's by a paired
        bootstrap over the prompts.

    Example:
        >>> report = difference({"r": torch.zeros(4)}, {"r": torch.ones(4)}, None)
        >>> report["r"]["delta"], report["r"]["delta_ci"]
        (1.0, [1.0, 1.0])
    """
    return {name: _difference(base[name], tuned[name], tags) for name in base}


def _difference(before: Tensor, after: Tensor, tags: Sequence[str] | None) -> dict[str, Any]:
    delta, low, high = paired_difference(before, after, seed=0, strata=tags)
    rate, worst, best = win_rate(after, before)
    return {
        "base": mean_interval(before, strata=tags)[0],
        "tuned": mean_interval(after, strata=tags)[0],
        "delta": delta,
        "delta_ci": [low, high],
        "win_rate": rate,
        "win_rate_ci": [worst, best],
    }
