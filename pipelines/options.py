"""Faster or smaller ways to run a pipeline. Each is compared with the plain way before it is used.

| option | compared on | allowed relative deviation |
|---|---|---|
| attention, compile | the denoiser's output at one step, at the first use | 1e-3 in float32, 3e-2 below |
| tiling | one decoded row, at the first use | 5e-2 |
| quantise | every layer's output on random input, while loading | int8 2e-2, nf4 1.2e-1 |

Offload moves weights and changes no arithmetic. Deviations are root mean squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor, nn

from visalign.types import Conditioning, InputError

if TYPE_CHECKING:
    from visalign.pipelines.pipeline import Pipeline

# Families whose result under enable_xformers_memory_efficient_attention was checked; Z-Image would lose its rotary
# embedding there without a word.
XFORMERS = ("unet", "lcm", "sd3")
LAYER_TOLERANCE = {"int8": 2e-2, "nf4": 1.2e-1}


@dataclass(frozen=True)
class Option:
    """A switch of a pipeline.

    Attributes:
        name: what it is called in messages.
        probe: what is compared, (B, *S), for a pipeline and a conditioning.
        tolerance: allowed deviation, relative to the plain result.
        apply: turns it on, and returns what turns it off.
        saves_memory: it is for what does not fit otherwise, and then cannot be compared.
    """

    name: str
    probe: Callable[[Pipeline, Conditioning], Tensor]
    tolerance: float
    apply: Callable[[Pipeline], Callable[[], None]]
    saves_memory: bool = False


def deviation(found: Tensor, plain: Tensor) -> float:
    """Root mean square of the difference, relative to that of the plain result."""
    return ((found.float() - plain.float()).square().mean() / plain.float().square().mean()).sqrt().item()


def turn_on(pipeline: Pipeline, conditioning: Conditioning, option: Option) -> float:
    """Turns an option on if it does not change the result.

    Args:
        pipeline: the pipeline.
        conditioning: any rows; the comparison runs on the first.
        option: what to turn on.

    Returns:
        The measured deviation; NaN where the plain run does not fit into memory.

    Raises:
        InputError: if the option is not available here, or changes the result; it is off again then.
    """
    row = conditioning.take([0])
    try:
        plain = option.probe(pipeline, row)
    except torch.OutOfMemoryError:
        if not option.saves_memory:
            raise
        option.apply(pipeline)
        return math.nan
    turn_off = option.apply(pipeline)
    try:
        measured = deviation(option.probe(pipeline, row), plain)
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        turn_off()
        raise InputError(f"{option.name} does not run here: {error}; use the default") from error
    if not measured <= option.tolerance:
        turn_off()
        raise InputError(
            f"{option.name} changes the result of {pipeline.name} by {measured:.3g} (relative), allowed is "
            f"{option.tolerance:g}; use the default"
        )
    return measured


def one_step(pipeline: Pipeline, conditioning: Conditioning) -> Tensor:
    """The denoiser's output at the noisiest step, (B, *S) float32."""
    seen: list[Tensor] = []

    def keep(step: Any) -> Tensor:
        seen.append(step.output)
        return step.sample

    pipeline.rollout(conditioning, [0] * len(conditioning), 1, keep, decode=False)
    return seen[0]


def one_decode(pipeline: Pipeline, conditioning: Conditioning) -> Tensor:
    """Pixels of a random state, (B, F, C, H, W)."""
    run = pipeline.rollout(conditioning, [0] * len(conditioning), 1, lambda step: step.sample, decode=False)
    return pipeline.decode(conditioning, run.initial).pixels


def attention(name: str, dtype: torch.dtype) -> Option:
    """Another attention backend, by diffusers' name or `xformers`.

    Args:
        name: see `diffusers.models.attention_dispatch.AttentionBackendName`.
        dtype: of the denoiser.

    Raises:
        InputError: if diffusers knows no such backend.
    """
    known = sorted(backend.value for backend in AttentionBackendName)
    if name not in known:
        raise InputError(f"there is no attention backend {name!r}; there are auto, {', '.join(known)}")
    return Option(f"attention: {name}", one_step, _tolerance(dtype), lambda pipeline: _switch_attention(pipeline, name))


def compiled(dtype: torch.dtype) -> Option:
    """The denoisers under torch.compile, in place: their classes and module names stay.

    Args:
        dtype: of the denoiser.
    """
    return Option("compile", one_step, _tolerance(dtype), _compile)


def tiled() -> Option:
    """The autoencoder in tiles, for pictures that do not fit as a whole."""
    return Option("tiling", one_decode, 5e-2, _tile, saves_memory=True)


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-3 if dtype == torch.float32 else 3e-2


def _switch_attention(pipeline: Pipeline, name: str) -> Callable[[], None]:
    denoisers = list(pipeline.denoisers.values())
    if all(_dispatches(denoiser) for denoiser in denoisers):
        return _dispatch(denoisers, name)
    if name == "xformers" and pipeline.family.name in XFORMERS:
        return _memory_efficient(pipeline.pipe)
    raise InputError(
        f"attention {name!r} cannot be had for {pipeline.name}: its attention does not go through diffusers' "
        "dispatcher, so the switch would do nothing; use attention: auto"
    )


def _dispatches(denoiser: nn.Module) -> bool:
    processors = [vars(module)["processor"] for module in denoiser.modules() if "processor" in vars(module)]
    return bool(processors) and all("_attention_backend" in dir(type(p)) for p in processors)


def _dispatch(denoisers: list[Any], name: str) -> Callable[[], None]:
    # diffusers also changes the backend of every other model in the process, and never changes it back.
    everywhere = _AttentionBackendRegistry._active_backend
    try:
        for denoiser in denoisers:
            denoiser.set_attention_backend(name)
    except (ImportError, RuntimeError, ValueError) as error:
        raise InputError(f"attention {name!r} is not available here: {error}; use attention: auto") from error
    finally:
        _AttentionBackendRegistry.set_active_backend(everywhere)

    def reset() -> None:
        for denoiser in denoisers:
            denoiser.reset_attention_backend()

    return reset


def _memory_efficient(pipe: Any) -> Callable[[], None]:
    try:
        pipe.enable_xformers_memory_efficient_attention()
    except (ImportError, RuntimeError, ValueError) as error:
        raise InputError(f"xformers is not available here: {error}; use attention: auto") from error
    return pipe.disable_xformers_memory_efficient_attention


def _compile(pipeline: Pipeline) -> Callable[[], None]:
    denoisers = list(pipeline.denoisers.values())
    for denoiser in denoisers:
        denoiser.compile()

    def plain() -> None:
        for denoiser in denoisers:
            denoiser._compiled_call_impl = None

    return plain


def _tile(pipeline: Pipeline) -> Callable[[], None]:
    vae: Any = pipeline.vae
    vae.enable_tiling()
    return vae.disable_tiling


def quantise(denoiser: nn.Module, kind: str) -> float:
    """Holds a denoiser's large layers in 8 or 4 bits, in place.

    Args:
        denoiser: the module.
        kind: `int8` (torchao) or `nf4` (bitsandbytes).

    Returns:
        The largest deviation of a layer on random input.

    Raises:
        InputError: if the library is missing, a layer changes too much, or there is none to hold so.
    """
    worst, layers = 0.0, list(_large_layers(denoiser))
    if not layers:
        raise InputError(f"quantise: {kind} found no linear layer whose inputs are a multiple of 64; leave it out")
    for parent, name, layer in layers:
        x = torch.randn(8, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)
        with torch.no_grad():
            plain = layer(x)
            small = _int8(layer) if kind == "int8" else _nf4(layer)
            setattr(parent, name, small)
            worst = max(worst, deviation(small(x), plain))
        if worst > LAYER_TOLERANCE[kind]:
            raise InputError(f"{kind} changes layer {name!r} by {worst:.3g}, allowed is {LAYER_TOLERANCE[kind]:g}")
    return worst


def _large_layers(denoiser: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    # Embeddings and the output layer hold little and matter much; they stand outside of the blocks. bitsandbytes is
    # wrong by 0.2 to 0.3 where a row is not made of whole blocks of 64.
    for path, module in denoiser.named_modules():
        for name, layer in module.named_children():
            if isinstance(layer, nn.Linear) and "block" in path and layer.in_features % 64 == 0:
                yield module, name, layer


def _int8(layer: nn.Linear) -> nn.Module:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise InputError("quantise: int8 needs torchao; pip install visalign[quant]") from error
    holder = nn.ModuleList([layer])
    quantize_(holder, Int8WeightOnlyConfig())
    return holder[0]


def _nf4(layer: nn.Linear) -> nn.Module:
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise InputError("quantise: nf4 needs bitsandbytes; pip install visalign[quant]") from error
    weight, bias = layer.weight, layer.bias
    small = Linear4bit(
        layer.in_features, layer.out_features, bias is not None, compute_dtype=weight.dtype, quant_type="nf4"
    )
    small.weight = Params4bit(weight.data.contiguous(), requires_grad=False, quant_type="nf4")
    small.bias = bias
    return small.to(weight.device).requires_grad_(False)
