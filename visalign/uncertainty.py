"""How much a reward is to be believed: weights from disagreement and from unfamiliar features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def ctrl_u(uncertainty: Tensor) -> Tensor:
    """exp(−u): what Ctrl-U (2410.11236) multiplies a reward with whose two judgements differ by u."""
    return (-uncertainty).exp()


def pref_paint(uncertainty: Tensor) -> Tensor:
    """exp(0.7 − 0.05·u) within [1, 2.21]: PrefPaint (2410.21966) trusts rewards of familiar features more."""
    return (0.7 - 0.05 * uncertainty).exp().clamp(1.0, 2.21)


UNCERTAINTY_RULES: dict[str, Callable[[Tensor], Tensor]] = {"ctrl_u": ctrl_u, "pref_paint": pref_paint}


def feature_uncertainty(features: Tensor, covariance: Tensor) -> Tensor:
    """‖zᵀ V⁻¹‖₂ of features (B, D) under V (D, D) of the reward's training features (PrefPaint), (B,) float32."""
    return torch.linalg.solve(covariance.double().T, features.double().T).T.norm(dim=1).float()
