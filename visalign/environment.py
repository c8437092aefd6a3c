"""What a run ran on: versions and devices."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("visalign", "torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "safetensors")


def package_version(name: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def environment() -> dict[str, str]:
    """Python, package versions, and the device, by name."""
    import torch

    versions = {name: found for name in PACKAGES if (found := package_version(name))}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    device = ", ".join(gpus) or f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return {"Python": platform.python_version(), **versions, "system": platform.system(), "device": device}
