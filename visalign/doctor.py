"""Checks of the installation and the machine that try the thing itself, and say what to do about what is wrong."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from visalign.environment import package_version

Status = Literal["ok", "warn", "fail"]
NEEDED = {"diffusers": (0, 40), "transformers": (5, 0), "peft": (0, 19), "accelerate": (1, 13)}
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
FREE_GB = 5.0
"""Free disk below this is worth a word: checkpoints are small, hub models are not."""


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: what was checked.
        status: `fail` stops visalign from working, `warn` makes it slower or smaller.
        found: what was seen.
        advice: what to do; empty where nothing is to be done.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def python() -> Check:
    """The interpreter."""
    fits = sys.version_info >= (3, 11)
    return Check(
        "Python", "ok" if fits else "fail", platform.python_version(), "" if fits else "use Python 3.11 or newer"
    )


def torch_and_torchvision() -> Check:
    """torch and torchvision must come from the same index; torchvision's compiled operators tell."""
    found = f"torch {torch.__version__}, torchvision {package_version('torchvision') or 'not installed'}"
    if package_version("torchvision") is None:
        return Check("torch", "warn", found, "open_clip rewards need torchvision; take it from torch's index")
    try:
        import torchvision  # noqa: F401  registers its operators

        kept = torch.ops.torchvision.nms(torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]]), torch.tensor([1.0, 0.5]), 0.5)
    except (RuntimeError, ImportError, AttributeError) as error:
        text = f"{found}: {str(error).splitlines()[0]}"
        return Check("torch", "fail", text, "install torch and torchvision from the same index, in one command")
    assert kept.tolist() == [0]
    return Check("torch", "ok", found)


def packages() -> list[Check]:
    """The libraries that visalign stands on."""
    return [_package(name, needed) for name, needed in NEEDED.items()]


def _package(name: str, needed: tuple[int, int]) -> Check:
    found, wanted = package_version(name), ".".join(map(str, needed))
    if found is None:
        return Check(name, "fail", "not installed", f"pip install '{name}>={wanted}'")
    fits = tuple(int(part) for part in found.split(".")[:2]) >= needed
    return Check(name, "ok" if fits else "fail", found, "" if fits else f"pip install -U '{name}>={wanted}'")


def device() -> list[Check]:
    """GPUs with their memory, or how fast the CPU multiplies in float32 and bfloat16."""
    if torch.cuda.is_available():
        return [_gpu(i) for i in range(torch.cuda.device_count())]
    plain, half = (_gflops(dtype) for dtype in (torch.float32, torch.bfloat16))
    found = (
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads; {plain:.0f} GFLOP/s, bfloat16 {half / plain:.1f} ×"
    )
    hint = "this CPU is faster in bfloat16: model.dtype=bfloat16" if half > 1.5 * plain else ""
    return [
        Check(
            "device",
            "ok",
            f"no GPU; CPU with {found}",
            hint or "the shapes models train well here; larger ones need a GPU",
        )
    ]


def _gpu(index: int) -> Check:
    facts = torch.cuda.get_device_properties(index)
    half = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: use model.dtype=float16"
    return Check(f"GPU {index}", "ok", f"{facts.name}, {facts.total_memory / 1e9:.0f} GB, {half}")


def _gflops(dtype: torch.dtype, side: int = 768) -> float:
    a, seconds = torch.ones(side, side, dtype=dtype), []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, a)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e9


def attention() -> list[Check]:
    """Attention backends, by running them and comparing with the plain formula."""
    found, xformers = [_backend("SDPA", _sdpa, "fail")], package_version("xformers")
    return found if xformers is None else [*found, _backend(f"xformers {xformers}", _xformers, "warn")]


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q, k, v)


def _backend(name: str, run: Callable[[Tensor, Tensor, Tensor], Tensor], status: Status) -> Check:
    place = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = torch.randn(3, 1, 16, 2, 64, device=place).unbind(0)  # (B, L, heads, width)
    weights = torch.softmax(torch.einsum("blhd,bmhd->bhlm", q, k) / 8, dim=-1)
    expected, label = torch.einsum("bhlm,bmhd->blhd", weights, v), f"attention: {name}"
    try:
        deviation = float((run(q, k, v) - expected).abs().max())
    except Exception as error:  # a backend fails in ways of its own; that it fails is the finding
        return Check(label, status, str(error).splitlines()[0][:100], "leave model.attention at auto")
    if deviation > 1e-2:
        return Check(label, status, f"differs from the formula by {deviation:.1e}", "leave model.attention at auto")
    return Check(label, "ok", f"runs, within {deviation:.0e} of the formula")


def disk() -> Check:
    """Free space where runs are written."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    fits = free >= FREE_GB
    return Check(
        "disk", "ok" if fits else "warn", f"{free:.0f} GB free here", "" if fits else "set output= to a larger disk"
    )


def hub() -> Check:
    """Whether models can be fetched, and gated ones too."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return Check(
            "hub", "warn", "HF_HUB_OFFLINE is set", "only local folders and cached models load; unset it to fetch"
        )
    if get_token() is None:
        return Check("hub", "warn", "not logged in", "gated models (FLUX.1, SD3.5) need: hf auth login")
    return Check("hub", "ok", "a token is stored")


def video() -> Check:
    """Encode two frames as MP4."""
    import numpy as np

    from visalign.media_io import encode_mp4

    try:
        data = encode_mp4(np.zeros((2, 32, 32, 3), dtype=np.uint8), 8.0, {})
    except Exception as error:  # PyAV without an encoder fails in many ways; that it fails is the finding
        return Check("video", "fail", str(error), "pip install --force-reinstall av (its wheel has H.264)")
    return Check("video", "ok", f"PyAV {package_version('av')} wrote H.264, {len(data)} bytes")


def run() -> list[Check]:
    """All checks, in order."""
    return [python(), torch_and_torchvision(), *packages(), *device(), *attention(), disk(), hub(), video()]


def main() -> int:
    """Print the table; 1 where something fails, else 0."""
    from rich.table import Table
    from rich.text import Text

    from visalign.progress import console

    table = Table("check", "", "found", "what to do", box=None)
    checks = run()
    for check in checks:
        status = Text(check.status, style=STYLES[check.status])
        table.add_row(check.name, status, Text(check.found), Text(check.advice))
    console().print(table)
    return int(any(check.status == "fail" for check in checks))
