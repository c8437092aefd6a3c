"""What several processes share: rows gathered in global order, gradients summed. One process is the same code.

The denoiser is never wrapped: pipelines read its attributes. Adapters are small, so their gradients are all-reduced.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start() -> None:
    """Join the processes that a launcher (accelerate, torchrun) started; nothing when there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes files."""
    return rank() == 0


def wait() -> None:
    """Meet the other processes."""
    if world() > 1:
        dist.barrier()


def sum_over(value: Tensor) -> Tensor:
    """The sum of a tensor over processes."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def gather_rows(values: Tensor, rows: Sequence[int], total: int) -> Tensor:
    """All processes' rows in global order, (total, …); `values` holds this process's `rows`."""
    full = torch.zeros((total, *values.shape[1:]), dtype=torch.float64, device=values.device)
    full[torch.as_tensor(rows, device=values.device, dtype=torch.long)] = values.double()
    return sum_over(full).to(values.dtype)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up every parameter's gradient over processes, in place; a parameter without one counts as zero."""
    if world() == 1:
        return
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    start = 0
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.copy_(flat[start : start + parameter.numel()].view_as(parameter))
        start += parameter.numel()
