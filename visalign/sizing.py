"""How large a model is, from its component configs alone: modules are built on the meta device, without weights."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visalign.api import model_source
from visalign.config import LoraConfig

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "nf4": 0.5}


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters.

    Attributes:
        components: component → parameters.
        denoisers: which of the components are trained.
        lora: parameters of the adapter.
        missing: components that are no diffusers or transformers class and were not sized.
    """

    components: Mapping[str, int]
    denoisers: tuple[str, ...]
    lora: int
    missing: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Parameters of all components."""
        return sum(self.components.values())


def model_folder(name: str) -> Path | None:
    """Where a model's configs lie on this machine; None for a hub id that was never fetched."""
    source = Path(model_source(name))
    if (source / "model_index.json").is_file():
        return source
    if len(source.parts) != 2:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(str(source), "model_index.json")
    return Path(cached).parent if isinstance(cached, str) else None


def measure_sizes(folder: Path, lora: LoraConfig) -> Sizes:
    """Sizes of the model in a diffusers folder with an adapter."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = {name: entry for name, entry in index.items() if (folder / name / "config.json").is_file()}
    known = {name: entry for name, entry in parts.items() if entry[0] in ("diffusers", "transformers")}
    modules = {name: build(folder / name, *entry) for name, entry in known.items()}
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    denoisers, adapter = _adapter(index["_class_name"], modules, lora)
    return Sizes(counts, denoisers, adapter, tuple(n for n in parts if n not in known))


def build(folder: Path, library: str, class_name: str) -> nn.Module:
    """A component on the meta device, from its config.json."""
    kind: Any = getattr(importlib.import_module(library), class_name)
    with torch.device("meta"):
        if library == "diffusers":
            return kind.from_config(kind.load_config(folder))
        return kind(kind.config_class.from_pretrained(folder))


def _adapter(class_name: str, modules: Mapping[str, nn.Module], lora: LoraConfig) -> tuple[tuple[str, ...], int]:
    from visalign.pipelines.families import family_of
    from visalign.policy import Policy

    # A family is told from a pipeline's class name and components; here there is no pipeline yet.
    stand_in: Any = type(class_name, (), {"components": modules})()
    family = family_of(stand_in)
    denoisers = {name: modules[name] for name in family.denoisers if name in modules}
    policy = Policy(denoisers, lora, family.lora_targets, seed=0)
    return tuple(denoisers), policy.num_parameters()
