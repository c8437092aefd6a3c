"""Save a LoRA as diffusers reads it, load it back, and compare before saying that it is saved.

alpha/r is folded into B (so alpha equals r), because a reader without the adapter's metadata takes the scale as 1.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visalign.policy import ADAPTER, Policy
from visalign.types import Conditioning, InputError, RunError

if TYPE_CHECKING:
    from visalign.pipelines.pipeline import Pipeline

FILE = "pytorch_lora_weights.safetensors"


def folded(policy: Policy) -> dict[str, Tensor]:
    """The adapter in PEFT keys with alpha/r folded into B: `<denoiser>.<module>.lora_A.weight`, float32."""
    scale = policy.config.alpha / policy.config.rank
    result = {}
    for key, parameter in policy.parameters.items():
        value = parameter.detach().float().cpu() * (scale if ".lora_B." in key else 1.0)
        result[key.replace(f".{ADAPTER}.", ".")] = value.contiguous()
    return result


def save(policy: Policy, folder: Path) -> Path:
    """Write the current adapter into `folder` (replaced as a whole), ready for `load_lora_weights`.

    Raises:
        RunError: the disk is full or not writable.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(folded(policy), temporary / FILE, metadata={"format": "pt"})
        (temporary / "visalign.json").write_text(json.dumps({"rank": policy.config.rank}))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"the LoRA could not be written to {str(folder)!r}: {error}. Free disk space, then resume"
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return folder


def read(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved LoRA.

    Raises:
        InputError: there is no safetensors file, or it is torn.
    """
    path = folder / FILE
    others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".ckpt", ".pt"))
    if not path.is_file():
        found = f"; found {', '.join(others)}, which visalign does not read: only safetensors" if others else ""
        raise InputError(f"no LoRA in {str(folder)!r}: {FILE} is expected there{found}")
    try:
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} is not a whole safetensors file: {error}. Save it again") from error


def load(pipeline: Pipeline, folder: Path) -> None:
    """Put a saved LoRA on a pipeline's denoisers.

    Raises:
        InputError: the file is missing or torn, or fits none of the pipeline's modules.
    """
    tensors = read(folder)
    for name, module in pipeline.denoisers.items():
        own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        if not own:
            raise InputError(f"the LoRA in {str(folder)!r} has nothing for {name!r}; was it made for another model?")
        targets = sorted({k.rsplit(".lora_", 1)[0] for k in own})
        rank = next(v.shape[0] for k, v in own.items() if ".lora_A." in k)
        inject_adapter_in_model(
            PeftConfig(r=rank, lora_alpha=rank, target_modules=targets), module, adapter_name=ADAPTER
        )
        outcome: Any = set_peft_model_state_dict(module, own, adapter_name=ADAPTER)
        if outcome.unexpected_keys:
            raise InputError(f"the LoRA in {str(folder)!r} does not fit {name!r}: {outcome.unexpected_keys[:3]} …")


def one_step(pipeline: Pipeline, conditioning: Conditioning, x: Tensor, num_steps: int) -> Tensor:
    """The denoiser's output at the first step from loop state `x`, (B, *S) float32."""
    kept: list[Tensor] = []
    pipeline.replay(conditioning, {0: x}, num_steps, lambda call: kept.append(call.output), grad=False)
    return kept[0]


def verify(
    trained: Pipeline,
    policy: Policy,
    folder: Path,
    reopen: Callable[[], Pipeline],
    conditioning: Conditioning,
    x: Tensor,
    num_steps: int,
) -> float:
    """Load a saved LoRA into a fresh pipeline and compare one step with the trained one.

    Returns:
        The largest difference, relative to the output's largest magnitude.

    Raises:
        RunError: the loaded adapter has no effect, or another one.
    """
    with torch.no_grad():
        expected = one_step(trained, conditioning, x, num_steps)
        with policy.using("reference"):
            base = one_step(trained, conditioning, x, num_steps)
    fresh = reopen()
    load_as_diffusers(fresh, folder)
    loaded = one_step(fresh, conditioning, x, num_steps)
    size = float(expected.abs().max())
    effect, error = float((loaded - base).abs().max()) / size, float((loaded - expected).abs().max()) / size
    trained_effect = float((expected - base).abs().max()) / size
    tolerance = max(1e-4, 1e-2 * trained_effect)
    if trained_effect > 1e-6 and effect < 0.1 * trained_effect:
        raise RunError(f"the LoRA in {str(folder)!r} has no effect when loaded back (change {effect:.1e})")
    if error > tolerance:
        raise RunError(
            f"the LoRA in {str(folder)!r} gives another result when loaded back: {error:.1e} > {tolerance:.1e}"
        )
    return error


def load_as_diffusers(pipeline: Pipeline, folder: Path) -> None:
    """Load through the pipeline's own `load_lora_weights` where its class has one, as a user of diffusers does."""
    if pipeline.family.lora_loader:
        read(folder)
        pipeline.pipe.load_lora_weights(str(folder))
    else:
        load(pipeline, folder)
