"""Intervals: means, paired differences by bootstrap over prompts, win rates.

NaN marks a judgement that failed: such rows are left out, and of a pair both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from visalign.types import InputError

Interval = tuple[float, float, float]
"""A point estimate with the low and high end of its interval."""

_CHUNK = 2**22  # resampled values held at once: 32 MB


def mean_interval(values: Tensor, *, strata: Sequence[str] | None = None, level: float = 0.95) -> Interval:
    """Mean with Student's interval; of one value both ends are NaN.

    Args:
        values: (N,), NaN where there was no judgement.
        strata: the category of each value; the result is then the mean of the category means (GenEval's overall
            score), with the standard error of that.
        level: coverage.

    Raises:
        InputError: no value is left.

    Example:
        >>> [round(v, 2) for v in mean_interval(torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 1.0]))]
        [0.67, 0.12, 1.21]
    """
    parts = _split(values, strata)
    count = sum(len(p) for p in parts)
    mean = sum(float(p.mean()) for p in parts) / len(parts)
    if count <= len(parts):
        return mean, math.nan, math.nan
    # Categories of one value borrow the pooled variance; they have none of their own.
    pooled = sum(float(((p - p.mean()) ** 2).sum()) for p in parts) / (count - len(parts))
    variance = sum((float(p.var()) if len(p) > 1 else pooled) / len(p) for p in parts) / len(parts) ** 2
    half = student_quantile(0.5 + level / 2, count - len(parts)) * math.sqrt(variance)
    return mean, mean - half, mean + half


def paired_difference(
    before: Tensor,
    after: Tensor,
    *,
    seed: int,
    resamples: int = 10_000,
    level: float = 0.95,
    strata: Sequence[str] | None = None,
) -> Interval:
    """Mean of after − before with a percentile bootstrap interval over the prompts.

    Args:
        before: (N,) scores of the prompts.
        after: (N,) scores of the same prompts in the same order.
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of bootstrap samples.
        level: coverage.
        strata: the category of each prompt: resampled within, and the mean of the category means is compared.

    Returns:
        (delta, low, high).

    Raises:
        InputError: the two do not pair up, or no pair is left.

    Example:
        >>> before, after = torch.zeros(100), torch.ones(100)
        >>> paired_difference(before, after, seed=0)
        (1.0, 1.0, 1.0)
    """
    if before.shape != after.shape:
        raise InputError(f"{len(before)} scores before and {len(after)} after do not pair up; score the same prompts")
    parts = _split(after.double() - before.double(), strata)
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack([_resampled_means(p, resamples, generator) for p in parts]).mean(0)
    ends = torch.quantile(means, torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=means.dtype))
    return sum(float(p.mean()) for p in parts) / len(parts), float(ends[0]), float(ends[1])


def _resampled_means(values: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    size, step = len(values), max(1, _CHUNK // len(values))
    counts = [min(step, resamples - start) for start in range(0, resamples, step)]
    return torch.cat([values[torch.randint(size, (c, size), generator=generator)].mean(1) for c in counts])


def win_rate(a: Tensor, b: Tensor, *, level: float = 0.95) -> Interval:
    """Share of the rows where `a` beats `b`, ties counted half, with Wilson's interval.

    Args:
        a: (N,) scores.
        b: (N,) scores of the same prompts.
        level: coverage.

    Raises:
        InputError: the two do not pair up, or no pair is left.

    Example:
        >>> [round(v, 3) for v in win_rate(torch.tensor([1.0, 1.0, 0.0, 0.5]), torch.tensor([0.0, 0.0, 1.0, 0.5]))]
        [0.625, 0.219, 0.908]
    """
    if a.shape != b.shape:
        raise InputError(f"{len(a)} scores against {len(b)} do not pair up; score the same prompts")
    difference = _split(a.double() - b.double(), None)[0]
    count, wins = len(difference), float((difference > 0).sum() + 0.5 * (difference == 0).sum())
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate, shrink = wins / count, 1 + z * z / count
    centre = (rate + z * z / (2 * count)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return rate, max(0.0, centre - half), min(1.0, centre + half)


def _split(values: Tensor, strata: Sequence[str] | None) -> list[Tensor]:
    # One part a category, NaN rows left out; a category without any value drops out of the mean.
    labels = ["all"] * len(values) if strata is None else list(strata)
    if len(labels) != len(values):
        raise InputError(f"{len(values)} scores came with {len(labels)} categories; give one each")
    keep = ~torch.isnan(values)
    parts = []
    for label in sorted(set(labels)):
        part = values.double()[keep & torch.tensor([one == label for one in labels])]
        parts += [part] if len(part) else []
    if not parts:
        raise InputError(f"no valid score is left of {len(values)}; see the invalid ones in the reward's own messages")
    return parts


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t (Hill 1970, Algorithm 396: six digits from three degrees of freedom on).

    Example:
        >>> round(student_quantile(0.975, 9), 4)
        2.2622
    """
    two_sided = 2 * (1 - probability)
    if freedom == 1:
        return 1 / math.tan(math.pi * two_sided / 2)
    if freedom == 2:
        return math.sqrt(2 / (two_sided * (2 - two_sided)) - 2)
    return _hill(two_sided, freedom)


def _hill(p: float, n: int) -> float:
    a = 1 / (n - 0.5)
    b = (48 / a) / a
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * p) ** (2 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(p / 2)
        y = x * x
        if n < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        y = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * (n + 1) / (
            n + 2
        ) + 1 / y
    return math.sqrt(n * y)
