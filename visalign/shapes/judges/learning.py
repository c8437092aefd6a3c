"""A training that can be stopped at any step: batches depend on the step's number alone, and the state is saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from visalign.shapes.autoencoder import Progress, one_cycle
from visalign.shapes.descent import descend, follow, optimizer_tensors, restore_optimizers, write_state
from visalign.shapes.judges.recipes import Schedule

_BLOCKS = ("blocks.", "layers.", "layer.")

B = TypeVar("B")

Loss = Callable[[int], Tensor]
"""The loss of a step, from nothing but its number and the weights."""


@dataclass(frozen=True)
class Place:
    """Where a training runs.

    Attributes:
        device: of the weights, as torch names it.
        workers: processes that make batches ahead of their use; 0 makes each where it is used.
    """

    device: str = "cpu"
    workers: int = 0


HERE = Place()


class Ahead(Generic[B]):
    """Batches by number, made ahead by worker processes; they are the same ones as without.

    Args:
        make: the batch of a step.
        steps: their number.
        workers: processes; 0 makes each batch where it is used.
    """

    def __init__(self, make: Callable[[int], B], steps: int, workers: int) -> None:
        self._make, self._steps, self._workers = make, steps, workers
        self._coming: Iterator[B] = iter(())
        self._next = -1

    def __call__(self, step: int) -> B:
        """The batch of a step; only in rising order they are ready when asked for."""
        if step != self._next:
            numbers: Any = range(step, self._steps)  # a sequence of numbers is data set enough
            make: Any = self._make
            self._coming = iter(DataLoader(numbers, batch_size=None, collate_fn=make, num_workers=self._workers))
        self._next = step + 1
        return next(self._coming)


@contextmanager
def fast(enabled: bool, device: str = "cpu") -> Iterator[None]:
    """Matrix products in bfloat16, attention's too; of CPUs the fused kernel is twice as slow at these sizes."""
    kernels = [SDPBackend.MATH] if device == "cpu" else [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(enabled)
    try:
        with sdpa_kernel(kernels), torch.autocast(device, torch.bfloat16, enabled=enabled):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)


def make_optimizers(module: nn.Module, weight_decay: float, matrix_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of transformer blocks, with steps `matrix_rate` times as long, AdamW for the rest."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if p.ndim == 2 and p.shape.numel() > 4096 and any(b in n for b in _BLOCKS)]
    inside = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in inside]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=weight_decay)
    ]
    if matrices:
        muon = torch.optim.Muon(
            [{"params": matrices, "relative_rate": matrix_rate}],
            lr=0.0,
            momentum=0.95,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        optimizers.append(muon)
    return optimizers


class Trainer:
    """Minimises a loss with averaged weights.

    Args:
        module: what is trained.
        schedule: how long and how fast.
    """

    def __init__(self, module: nn.Module, schedule: Schedule) -> None:
        self.module, self.schedule = module, schedule
        self.average = copy.deepcopy(module).requires_grad_(False)
        self.optimizers = make_optimizers(module, schedule.weight_decay, schedule.matrix_rate)
        self.step = 0

    def run(self, loss: Loss, label: str, folder: Path, progress: Progress) -> None:
        """Train to the end, or what is left of it; the module leaves with the averaged weights."""
        if (folder / "state.safetensors").exists():
            self.load(folder)
        while self.step < self.schedule.steps:
            value = self.train_step(loss)
            progress(label, self.step, self.schedule.steps, value)
            if self.step % self.schedule.save_every == 0 or self.step == self.schedule.steps:
                self.save(folder)
        self.module.load_state_dict(self.average.state_dict())

    def train_step(self, loss: Loss) -> float:
        """One update; returns the loss."""
        rate = self.schedule.learning_rate * one_cycle(self.step, self.schedule.steps, self.schedule.warmup)
        value = descend(loss(self.step), self.module, self.optimizers, rate, self.schedule.clip_norm)
        self.step += 1
        follow(self.average, self.module, self.step, self.schedule.ema_decay)
        return value

    def save(self, folder: Path) -> None:
        """Write everything that the next step depends on."""
        tensors: dict[str, Tensor] = {f"weights.{k}": v for k, v in self.module.named_parameters()}
        tensors |= {f"average.{k}": v for k, v in self.average.named_parameters()}
        write_state(tensors | optimizer_tensors(self.optimizers) | {"step": torch.tensor(self.step)}, folder)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote."""
        tensors = load_file(folder / "state.safetensors")
        for prefix, module in (("weights.", self.module), ("average.", self.average)):
            for name, parameter in module.named_parameters():
                parameter.copy_(tensors[prefix + name])
        restore_optimizers(self.optimizers, tensors)
        self.step = int(tensors["step"])
