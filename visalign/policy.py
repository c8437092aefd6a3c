"""LoRA adapters on the denoisers and the views of them: current, reference (adapters off), old and EMA snapshots.

Snapshots hold only adapter weights; using one swaps tensors, so every policy costs one adapter and no second base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from visalign.config import LoraConfig
from visalign.types import InputError

ADAPTER = "default"


class Policy:
    """The trained adapter of one or more denoisers.

    Args:
        denoisers: name → module; frozen here.
        config: rank, alpha, targets.
        targets: module name endings used when the config names none.
        seed: of the adapter's initialisation (A gaussian, B zero, so that the start is the base exactly).

    Raises:
        InputError: no module matches the targets.
    """

    def __init__(self, denoisers: dict[str, nn.Module], config: LoraConfig, targets: Sequence[str], seed: int) -> None:
        self.denoisers, self.config = denoisers, config
        peft = PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            init_lora_weights="gaussian",
            target_modules=list(config.targets or targets),
            lora_dropout=0.0,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for name, module in denoisers.items():
                _inject(name, module.requires_grad_(False), peft)
        self.layers = [m for d in denoisers.values() for m in d.modules() if isinstance(m, BaseTunerLayer)]
        self.parameters: dict[str, nn.Parameter] = {}
        for name, module in denoisers.items():
            for path, parameter in module.named_parameters():
                if f".{ADAPTER}." in path:
                    parameter.data = parameter.data.float()
                    parameter.requires_grad_(True)
                    self.parameters[f"{name}.{path}"] = parameter
        self.snapshots: dict[str, dict[str, Tensor]] = {}

    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(p.numel() for p in self.parameters.values())

    def snapshot(self, name: str) -> None:
        """Keep a copy of the current weights under a name."""
        self.snapshots[name] = self.weights()

    def average(self, name: str, decay: float) -> None:
        """Move a snapshot towards the current weights: decay·snapshot + (1−decay)·current."""
        for key, value in self.snapshots[name].items():
            value.mul_(decay).add_(self.parameters[key].detach(), alpha=1 - decay)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the current adapter weights, by name."""
        return {k: p.detach().clone() for k, p in self.parameters.items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Overwrite the current adapter weights."""
        for key, parameter in self.parameters.items():
            parameter.data.copy_(weights[key])

    def load_folded(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite the current weights from a saved LoRA, whose alpha/r is folded into B.

        Raises:
            InputError: it was made with other targets or another rank.
        """
        scale = self.config.alpha / self.config.rank
        for key, parameter in self.parameters.items():
            value = tensors.get(key.replace(f".{ADAPTER}.", "."))
            if value is None or value.shape != parameter.shape:
                raise InputError(
                    f"the LoRA does not fit at {key!r}; use the lora.rank and lora.targets it was made with"
                )
            parameter.data.copy_(value / scale if ".lora_B." in key else value)

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Act as `current`, `reference` (the base, adapters off) or a snapshot; restored whatever happens."""
        if name == "current":
            yield
        elif name == "reference":
            with self._disabled():
                yield
        else:
            with self._swapped(self.snapshots[name]):
                yield

    @contextmanager
    def _disabled(self) -> Iterator[None]:
        for layer in self.layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers:
                layer.enable_adapters(True)

    @contextmanager
    def _swapped(self, weights: dict[str, Tensor]) -> Iterator[None]:
        kept = {k: p.data for k, p in self.parameters.items()}
        try:
            for key, parameter in self.parameters.items():
                parameter.data = weights[key]
            yield
        finally:
            for key, parameter in self.parameters.items():
                parameter.data = kept[key]


def _inject(name: str, module: nn.Module, peft: PeftConfig) -> None:
    try:
        inject_adapter_in_model(peft, module, adapter_name=ADAPTER)
    except ValueError as error:
        raise InputError(f"no LoRA can be put on {name!r}: {error}. Set lora.targets to module name endings") from error
