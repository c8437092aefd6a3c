"""A training that can be stopped at any step: batches depend on the step's number alone, and the state is saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from visalign.shapes.autoencoder import Progress, one_cycle
from visalign.shapes.judges.recipes import Schedule

_BLOCKS = ("resblocks.", "layers.")

Loss = Callable[[int], Tensor]
"""The loss of a step, from nothing but its number and the weights."""


@contextmanager
def fast(enabled: bool) -> Iterator[None]:
    """Matrix products in bfloat16, attention's too: the fused kernel of CPUs is twice as slow at these sizes."""
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(enabled)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)


def make_optimizers(module: nn.Module, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of transformer blocks, AdamW for the rest; Muon's steps have the size of AdamW's."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if p.ndim == 2 and p.shape.numel() > 4096 and any(b in n for b in _BLOCKS)]
    inside = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in inside]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=weight_decay)
    ]
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=0.0, momentum=0.95, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
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
        self.optimizers = make_optimizers(module, schedule.weight_decay)
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
        for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
            group["lr"] = rate
        value = loss(self.step)
        self.module.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), self.schedule.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self._update_average()
        return value.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.schedule.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.module.parameters()), 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as tensors with flat names."""
        tensors: dict[str, Tensor] = {f"weights.{k}": v for k, v in self.module.named_parameters()}
        tensors |= {f"average.{k}": v for k, v in self.average.named_parameters()}
        for number, optimizer in enumerate(self.optimizers):
            for i, slots in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{i}.{k}": v for k, v in slots.items()}
        tensors["step"] = torch.tensor(self.step)
        return {k: v.detach().contiguous().clone() for k, v in tensors.items()}

    def save(self, folder: Path) -> None:
        """Write `state.safetensors` under another name and rename it, so that a torn file is never read."""
        partial = folder / "state.partial"
        save_file(self.state(), partial)
        partial.rename(folder / "state.safetensors")

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote."""
        tensors = load_file(folder / "state.safetensors")
        for prefix, module in (("weights.", self.module), ("average.", self.average)):
            for name, parameter in module.named_parameters():
                parameter.copy_(tensors[prefix + name])
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key in (k for k in tensors if k.startswith(f"optimizer.{number}.")):
                _, _, index, slot = key.split(".")
                state.setdefault(int(index), {})[slot] = tensors[key]
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.step = int(tensors["step"])
