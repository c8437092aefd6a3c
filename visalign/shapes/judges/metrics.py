"""How well numbers agree with a truth: accuracy, AUROC, rank correlation and calibration."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BINS = 10


def ranks(values: Tensor) -> Tensor:
    """Ranks from 0, (N,) float64; equal values share their mean rank.

    Example:
        >>> ranks(torch.tensor([3.0, 1.0, 3.0])).tolist()
        [1.5, 0.0, 1.5]
    """
    _, number, count = values.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0).double() - (count + 1) / 2)[number]


def spearman(one: Tensor, other: Tensor) -> float:
    """Rank correlation of (N,) with (N,), in [-1, 1]; NaN where one of them is constant.

    Example:
        >>> round(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0])), 3)
        0.5
    """
    return float(torch.corrcoef(torch.stack([ranks(one), ranks(other)]))[0, 1])


def auroc(score: Tensor, label: Tensor) -> float:
    """How often a row with label 1 scores above one with label 0, ties counted half; NaN without both.

    Example:
        >>> auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        0.75
    """
    right = label > 0.5
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return math.nan
    below = ranks(score)[right].sum() - positives * (positives - 1) / 2
    return float(below / (positives * negatives))


def accuracy(probability: Tensor, label: Tensor) -> float:
    """Share of the rows where a probability above a half goes with label 1."""
    return float(((probability > 0.5) == (label > 0.5)).float().mean())


def calibration_error(probability: Tensor, label: Tensor) -> float:
    """Expected calibration error over ten equal bins: how far what was said is from what came true, on average.

    Example:
        >>> round(calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([1.0, 0.0])), 2)
        0.4
    """
    bins = (probability * _BINS).long().clamp(0, _BINS - 1)
    gap = torch.zeros(_BINS).index_add_(0, bins, probability.float() - label.float())
    return float(gap.abs().sum() / len(label))


def binary(probability: Tensor, label: Tensor) -> dict[str, float]:
    """Accuracy, AUROC and calibration error (`ece`) of probabilities (N,) of label 1."""
    return {
        "accuracy": accuracy(probability, label),
        "auroc": auroc(probability, label),
        "ece": calibration_error(probability, label),
    }
