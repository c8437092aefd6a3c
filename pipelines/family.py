"""What can differ between families of pipelines; a class that nobody named gets the defaults, which fit most."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from visalign.pipelines.images import as_tensor

# to_q, to_out.0, add_k_proj, … with the name of the attention they belong to: `attn1.to_q`.
ATTENTION = re.compile(r"(?:^|\.)((?:\w*_)?att(?:n|ention)\d*\.\w+(?:\.\d+)?)$")


def allowed(pipe: Any) -> str:
    """No reason against it."""
    return ""


@dataclass(frozen=True)
class Family:
    """The facts about one family of pipelines.

    Attributes:
        name: short name, for messages and reports.
        lora_targets: what a LoRA trains, as endings of module names; empty means all attention projections.
        denoisers: component names that may hold a denoiser.
        guidance: argument of the call that takes `Conditioning.guidance_scale`.
        guidance_in_batch: classifier-free guidance doubles the batch, rather than the calls of the denoiser.
        negative_prompt: what to pass as negative prompt where guidance needs one and none is given.
        training_guidance: guidance to train with where the user says nothing.
        fps: frames a second of the videos it makes; 0 for images.
        images: conditioning images (C, H, W) in [0, 1], one a row → the argument `image`.
        why_not_per_sample: pipe → why the rows of a batch cannot stand at different timesteps; empty where they can.
        lone_generator: pipe → whether it takes a list of generators in `prepare_latents` alone.
        lora_loader: the pipeline has `load_lora_weights`.
    """

    name: str = "generic"
    lora_targets: tuple[str, ...] = ()
    denoisers: tuple[str, ...] = ("transformer", "transformer_2", "unet")
    guidance: str = "guidance_scale"
    guidance_in_batch: bool = True
    negative_prompt: str | None = None
    training_guidance: float = 1.0
    fps: float = 0.0
    images: Callable[[Sequence[Tensor]], Any] = as_tensor
    why_not_per_sample: Callable[[Any], str] = allowed
    lone_generator: Callable[[Any], bool] = lambda pipe: False
    lora_loader: bool = True


def attention_projections(denoisers: Iterable[nn.Module]) -> tuple[str, ...]:
    """The linear layers of all attentions, as endings of module names, sorted.

    Args:
        denoisers: modules to look into.
    """
    names = [name for d in denoisers for name, module in d.named_modules() if isinstance(module, nn.Linear)]
    found = {match.group(1) for match in map(ATTENTION.search, names) if match}
    # FLUX.2 has `to_out` in some blocks and a list `to_out` in others, which no LoRA can wrap.
    return tuple(sorted(name for name in found if f"{name}.0" not in found))
