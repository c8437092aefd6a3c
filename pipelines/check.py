"""The contract of a pipeline, for the author of a new one and for a first run on an unknown one: `check_pipeline`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from visalign.pipelines import codec
from visalign.pipelines.call import arguments
from visalign.pipelines.media import mean_posterior, media_of
from visalign.pipelines.pipeline import Pipeline, Run
from visalign.pipelines.schedule import why_not_replayable
from visalign.pipelines.tap import StepCall, preserved
from visalign.process import add_noise, x0_eps
from visalign.types import Conditioning, InputError, Media


@dataclass(frozen=True)
class Report:
    """What a pipeline can do.

    Attributes:
        name: the pipeline's class name.
        passed: what → largest relative deviation, or 0 where there is none to measure.
        skipped: what does not apply → why.
    """

    name: str
    passed: dict[str, float]
    skipped: dict[str, str]


class _Check:
    """One rollout that is looked at from all sides."""

    def __init__(self, pipeline: Pipeline, conditioning: Conditioning, num_steps: int) -> None:
        self.pipeline, self.conditioning, self.num_steps = pipeline, conditioning, num_steps
        self.seeds = list(range(7, 7 + len(conditioning)))
        self.exact = pipeline.dtype == torch.float32
        self.steps: list[StepCall] = []
        self.next: list[Tensor] = []
        self.passed: dict[str, float] = {}
        self.skipped: dict[str, str] = {}
        self.run = self.rollout(self.record)

    def rollout(self, rule: Callable[[StepCall], Tensor] | None = None, **options: Any) -> Run:
        return self.pipeline.rollout(self.conditioning, self.seeds, self.num_steps, rule, **options)

    def record(self, step: StepCall) -> Tensor:
        self.steps.append(step)
        self.next.append(step.default())
        return self.next[-1]

    def same(self, what: str, found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
        """Notes that two tensors agree, relative to the largest number, or in the root mean square below float32."""
        assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
        difference, allowed = found - expected, tolerance
        if self.exact:
            deviation = (difference.abs().max() / expected.abs().max().clamp(min=1e-6)).item()
        else:  # rounding in another order moves single numbers far
            deviation, allowed = (difference.norm() / expected.norm().clamp(min=1e-6)).item(), max(tolerance, 0.1)
        assert deviation <= allowed, f"{self.pipeline.name}: {what} is off by {deviation:.3g}, allowed is {allowed:g}"
        self.passed[what] = max(deviation, self.passed.get(what, 0.0))

    def arrives(self, what: str, output: Tensor, leaf: Tensor) -> None:
        """Notes that a gradient arrives at a leaf."""
        assert output.requires_grad, f"{self.pipeline.name}: {what}: the graph is cut"
        output.square().sum().backward()
        self.alive(what, [leaf.grad])

    def alive(self, what: str, gradients: Sequence[Tensor | None]) -> None:
        """Notes that a gradient arrived: finite, and not zero everywhere."""
        arrived = [g for g in gradients if g is not None]
        assert arrived, f"{self.pipeline.name}: {what}: no gradient arrived"
        assert all(g.isfinite().all() for g in arrived), f"{self.pipeline.name}: {what}: the gradient is not finite"
        assert any(g.abs().max() > 0 for g in arrived), f"{self.pipeline.name}: {what}: the gradient is zero"
        self.passed[what] = 0.0

    def pixels(self, run: Run) -> Tensor:
        assert run.media is not None
        return run.media.pixels

    # What a pipeline must do.

    def identity(self) -> None:
        """The tap changes nothing: same pixels as the bare pipeline."""
        self.same(
            "tap identity",
            self.pixels(self.run),
            bare(self.pipeline, self.conditioning, self.seeds, self.num_steps).pixels,
            1e-4,
        )

    def levels(self) -> None:
        levels = self.pipeline.levels(self.conditioning, self.num_steps)
        assert len(levels) == len(self.steps), f"{len(levels)} levels for {len(self.steps)} steps"
        assert (levels.s[1:] < levels.s[:-1]).all(), f"noise levels do not fall: {levels.s.tolist()}"
        self.same("levels without a denoiser call", levels.s, self.run.levels.s, 1e-12)

    def explained(self) -> None:
        """The levels and the prediction type are the scheduler's: its deterministic step follows from them."""
        reason = why_not_replayable(self.pipeline.pipe.scheduler)
        if reason:
            self.skipped["levels explain the scheduler's step"] = reason
            return
        levels = self.run.levels
        for step, following in zip(self.steps, self.next, strict=True):
            i = step.index
            x0, eps = x0_eps(step.sample, step.output, levels.a[i], levels.s[i], levels.prediction, levels.scaled_input)
            expected = add_noise(x0, eps, levels.a[i + 1], levels.s[i + 1])
            # DDIM goes to t − 1000 // T, which is a rounding away from the next timestep where T does not divide 1000.
            self.same("levels explain the scheduler's step", expected, following, 1e-2)

    def injection(self) -> None:
        again = self.rollout(initial=self.run.initial)
        self.same("initial state put in", self.pixels(again), self.pixels(self.run))

    def noise(self) -> None:
        """A row's noise does not depend on the rows beside it."""
        row = self.conditioning.take([len(self.conditioning) - 1])
        initial = self.pipeline.rollout(row, self.seeds[-1:], self.num_steps, decode=False).initial
        self.same("noise of a row alone", initial, self.run.initial[-1:])

    def replay(self) -> None:
        for i in range(len(self.steps)):
            self._replayed("single-step replay", [i])
        self._replayed("replay in one call", range(len(self.steps)))

    def _replayed(self, what: str, indices: Sequence[int]) -> None:
        states = {self.steps[i].index: self.steps[i].loop for i in indices}
        seen: list[tuple[StepCall, Tensor]] = []
        follow = not self.pipeline.why_not_replayable()

        def keep(step: StepCall) -> None:
            seen.append((step, step.default() if follow else step.sample))

        self.pipeline.replay(self.conditioning, states, self.num_steps, keep, grad=False)
        assert [s.index for s, _ in seen] == list(indices), f"{what}: visited {[s.index for s, _ in seen]}"
        for i, (step, following) in zip(indices, seen, strict=True):
            self.same(what, step.sample, self.steps[i].sample)
            self.same(what, step.output, self.steps[i].output)
            if follow:
                self.same("scheduler's step at a replayed state", following, self.next[i])

    def branch(self) -> None:
        reason = self.pipeline.why_not_replayable()
        if reason:
            self.skipped["resume at a stored state"] = reason
            return
        middle = len(self.steps) // 2
        branch = self.rollout(initial=self.steps[middle].loop, start=middle)
        self.same("resume at a stored state", self.pixels(branch), self.pixels(self.run))

    def decode(self) -> None:
        media = self.pipeline.decode(self.conditioning, self.run.final)
        self.same("decode of a stored state", media.pixels, self.pixels(self.run), 1e-4)
        assert media.pixels.min() >= 0, "pixels below 0"
        assert media.pixels.max() <= 1, "pixels above 1"
        state = self.run.final.clone().requires_grad_()
        pixels = self.pipeline.decode(self.conditioning, state, grad=True).pixels
        self.arrives("gradient through decode", pixels, state)

    def gradient(self) -> None:
        initial = self.run.initial.clone().requires_grad_()
        pixels = self.pixels(self.rollout(initial=initial, grad_from=0))
        self.arrives("gradient from pixels to the initial noise", pixels, initial)

    def lora(self) -> None:
        states = {step.index: step.loop for step in self.steps}
        with _lora(self.pipeline) as parameters:
            self.pipeline.replay(
                self.conditioning, states, self.num_steps, lambda step: step.output.square().sum().backward()
            )
            for name, adapter in parameters.items():
                self.alive(f"LoRA gradient of {name}", [p.grad for p in adapter])
            unrecorded = self.rollout(grad_from=len(self.steps) - 1)
            assert not unrecorded.initial.requires_grad
            self.pixels(unrecorded).square().sum().backward()

    def per_sample(self) -> None:
        reason = self.pipeline.why_not_per_sample(self.conditioning)
        if reason:
            self.skipped["timesteps per sample"] = reason
            return
        first, second = self.steps[0], self.steps[1]
        timesteps = torch.stack([second.levels.timesteps[s.index] for s in (first, second)]).repeat(len(self.seeds))
        timesteps = timesteps[: len(self.seeds)]
        rows = torch.arange(len(self.seeds), device=first.loop.device) % 2 == 0
        x, expected = _interleaved(rows, first.loop, second.loop), _interleaved(rows, first.output, second.output)
        found = self.pipeline.predict(self.conditioning, x, timesteps=timesteps, num_steps=self.num_steps)
        self.same("timesteps per sample", found, expected)

    def hidden(self, state: Tensor) -> bool:
        leaf = state.clone().requires_grad_()
        self.pipeline.decode(self.conditioning, leaf, grad=True).pixels.square().sum().backward()
        assert leaf.grad is not None
        return bool(((leaf.grad == 0) & (state == 0)).any())

    def encode(self) -> None:
        what, media = "decode after encode", Media(self.pixels(self.run))
        try:
            state = self.pipeline.encode(self.conditioning, media)
        except InputError as error:
            self.skipped[what] = str(error)
            return
        if self.hidden(state):
            self.skipped[what] = (
                "the decoder does not see all of the state: a conditioning image stands there, or it is sound"
            )
            return
        decoded = self.pipeline.decode(self.conditioning, state)
        self.same(what, decoded.pixels, codec.reconstructed(self.pipeline.vae, media), 1e-3)


def check_pipeline(pipeline: Pipeline, conditioning: Conditioning, *, num_steps: int = 3) -> Report:
    """Runs the contract; the pipeline is left as it was.

    Args:
        pipeline: any pipeline under control.
        conditioning: two rows or more.
        num_steps: denoising steps to ask for, of which at least two must be run.

    Returns:
        What passed, how closely, and what does not apply.

    Raises:
        AssertionError: if the pipeline breaks the contract.
    """
    check = _Check(pipeline, conditioning, num_steps)
    assert len(check.steps) >= 2, f"{pipeline.name} took {len(check.steps)} steps; ask for more"
    for part in (
        check.identity,
        check.levels,
        check.explained,
        check.injection,
        check.noise,
        check.replay,
        check.branch,
        check.decode,
        check.gradient,
        check.lora,
        check.per_sample,
        check.encode,
    ):
        part()
    return Report(pipeline.name, check.passed, check.skipped)


def bare(pipeline: Pipeline, conditioning: Conditioning, seeds: Sequence[int], num_steps: int) -> Media:
    """What the diffusers pipeline makes of the same arguments without any control.

    Args:
        pipeline: any pipeline under control.
        conditioning: B rows.
        seeds: one a row.
        num_steps: denoising steps.
    """
    call = arguments(pipeline.pipe, pipeline.family, conditioning, num_steps, seeds, "pt")
    pipe = pipeline.pipe
    with preserved(pipe), preserved(pipe.scheduler), mean_posterior(pipe):
        return media_of(pipe(**call, return_dict=False)[0], 0)


def _interleaved(rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (first.ndim - 1)), first, second)


@contextmanager
def _lora(pipeline: Pipeline) -> Iterator[dict[str, list[nn.Parameter]]]:
    # A LoRA on each denoiser, and its parameters; taken off again.
    config = LoraConfig(r=2, target_modules=list(pipeline.family.lora_targets))
    for denoiser in pipeline.denoisers.values():
        inject_adapter_in_model(config, denoiser)
    try:
        yield {
            name: [p for key, p in denoiser.named_parameters() if "lora_" in key]
            for name, denoiser in pipeline.denoisers.items()
        }
    finally:
        for denoiser in pipeline.denoisers.values():
            _without_lora(denoiser)


def _without_lora(denoiser: Any) -> None:
    for name, module in list(denoiser.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(denoiser.get_submodule(parent), child, module.get_base_layer())
    vars(denoiser).pop("peft_config")
