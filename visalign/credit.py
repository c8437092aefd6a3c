"""Which step of a trajectory earns which share of the reward.

    f(rewards (B,), num_steps K) → (B, K)

Later entries (increments along ODE completions, tree means) join the table under their names.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Credit = Callable[[Tensor, int], Tensor]


def outcome(rewards: Tensor, num_steps: int) -> Tensor:
    """Every trained step earns the whole outcome (DDPO, Flow-GRPO): (B,) → (B, K), a view.

    Example:
        >>> import torch
        >>> outcome(torch.tensor([1.0, -1.0]), 3)
        tensor([[ 1.,  1.,  1.],
                [-1., -1., -1.]])
    """
    return rewards[:, None].expand(-1, num_steps)


CREDITS: dict[str, Credit] = {"outcome": outcome}
