"""What all trainings of the built-in world share: one update, the average of the weights, and the state on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Optimizers = Sequence[torch.optim.Optimizer]


def descend(loss: Tensor, module: nn.Module, optimizers: Optimizers, rate: float, clip_norm: float) -> float:
    """One update of all optimisers at a learning rate, or what a group takes of it; returns the loss."""
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["lr"] = rate * group.get("relative_rate", 1.0)
    module.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, step: int, decay: float) -> None:
    """Move the average towards the weights; early steps count for more than `decay` allows later."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)


def optimizer_tensors(optimizers: Optimizers) -> dict[str, Tensor]:
    """The optimisers' state with flat names."""
    tensors: dict[str, Tensor] = {}
    for number, optimizer in enumerate(optimizers):
        for i, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{i}.{k}": v for k, v in slots.items()}
    return tensors


def restore_optimizers(optimizers: Optimizers, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key in (k for k in tensors if k.startswith(f"optimizer.{number}.")):
            _, _, index, slot = key.split(".")
            state.setdefault(int(index), {})[slot] = tensors[key]
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def write_state(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write `state.safetensors` under another name and rename it, so that a torn file is never read."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "state.partial"
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, partial)
    partial.rename(folder / "state.safetensors")
