"""Any diffusers pipeline under control: roll out, replay, evaluate once, decode, encode.

Pixels that come with gradients pass diffusers' own clamp to [0, 1]: saturated pixels get no gradient, and an output
that is saturated everywhere is an error, not a silent zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visalign.pipelines import codec, options, tap
from visalign.pipelines.call import check_positional, noise_generators
from visalign.pipelines.driver import Driver
from visalign.pipelines.families import family_of
from visalign.pipelines.family import Family
from visalign.pipelines.media import media_of
from visalign.pipelines.schedule import replayable, why_not_replayable
from visalign.pipelines.steps import OnStep, Plan, Run, StepCall, recording_from
from visalign.types import Conditioning, InputError, Levels, Media


class Pipeline:
    """Control over a diffusers pipeline; it is put in eval mode and frozen, and a policy opens what is trained.

    Attributes:
        pipe: any diffusers pipeline.
        family: what differs from other families.
        name: the pipeline's class name.
        pending: options to be compared with the plain run, and turned on, at the first use.
        measured: option → how much it changes the result (relative).
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.name = pipe, type(pipe).__name__
        self.family: Family = family_of(pipe)
        self.pending: list[options.Option] = []
        self.measured: dict[str, float] = {}
        self._driver = Driver(pipe, self.family)
        self._rows_agree = self.family.name != "generic"
        pipe.set_progress_bar_config(disable=True)
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)

    @property
    def denoisers(self) -> dict[str, nn.Module]:
        """Component name → denoiser; Wan 2.2 has two."""
        parts = self.pipe.components
        found = {name: parts[name] for name in self.family.denoisers if isinstance(parts.get(name), nn.Module)}
        if not found:
            raise InputError(
                f"{self.name} has no denoiser under the names {', '.join(self.family.denoisers)}; its components are "
                f"{', '.join(parts)}"
            )
        return found

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return self.pipe._execution_device

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser's weights."""
        return next(next(iter(self.denoisers.values())).parameters()).dtype

    @property
    def vae(self) -> nn.Module:
        """The autoencoder."""
        return self.pipe.vae

    def levels(self, conditioning: Conditioning, num_steps: int) -> Levels:
        """The noise levels of a run as the pipeline sets them, without a denoiser call."""
        return self._driver.prepare(conditioning, num_steps)[0]

    def noise(self, conditioning: Conditioning, seeds: Sequence[int], num_steps: int) -> Tensor:
        """The loop state that a rollout of these seeds starts from, (B, *S) float32, found before it is run."""
        plan = Plan(lambda step: step.sample, only=[] if tap.decodes_alone(self.pipe) else [0])
        return self._ready(conditioning).run(conditioning, num_steps, plan, seeds=seeds).initial.float()

    def noise_scale(self, conditioning: Conditioning, num_steps: int) -> float:
        """Standard deviation of `noise`: 1, but for variance-exploding schedulers."""
        levels = self.levels(conditioning, num_steps)
        at_maximum = self.pipe.scheduler.config.get("timestep_spacing") in ("linspace", "trailing")
        return math.hypot(float(levels.s[0]), 0 if at_maximum else 1) if levels.scaled_input else 1.0

    def rollout(
        self,
        conditioning: Conditioning,
        seeds: Sequence[int],
        num_steps: int,
        rule: OnStep | None = None,
        *,
        grad_from: int | None = None,
        decode: bool = True,
        initial: Tensor | None = None,
        start: int = 0,
    ) -> Run:
        """One call of the pipeline.

        Args:
            conditioning: B rows.
            seeds: one a row; a row's initial noise depends on its seed alone.
            num_steps: denoising steps.
            rule: answers each step with the next sample; None is the scheduler's own step.
            grad_from: first step that autograd records, with the decoding after it (DRaFT-K: T − K); None is none.
            decode: whether to decode the end.
            initial: loop state to start from instead of noise, (B, *S); keeps its graph.
            start: the step to start at, with `initial` the state before it (a branch of another run).

        Returns:
            Levels, both ends, and media.

        Raises:
            InputError: if seeds and rows differ in number, or `initial` does not fit.
        """
        if len(seeds) != len(conditioning):
            raise InputError(f"{len(conditioning)} rows of conditioning came with {len(seeds)} seeds; give one each")
        on_step = rule if not grad_from else recording_from(grad_from, rule)
        outcome = self._ready(conditioning).run(
            conditioning,
            num_steps,
            Plan(on_step, start=start, states={} if initial is None else {start: initial}),
            grad=grad_from is not None and grad_from <= start,
            seeds=seeds,
            output_type="pt" if decode else "latent",
        )
        media = media_of(outcome.output, self._fps(conditioning)) if decode else None
        return Run(outcome.levels, outcome.initial.float(), outcome.final.float(), media)

    def replay(
        self,
        conditioning: Conditioning,
        states: Mapping[int, Tensor],
        num_steps: int,
        on_step: Callable[[StepCall], None],
        *,
        grad: bool = True,
    ) -> None:
        """One call of the pipeline that visits just the given steps, in order, at the stored loop states.

        Args:
            conditioning: the B rows of the rollout.
            states: step → loop state before it, (B, *S).
            num_steps: denoising steps of the rollout.
            on_step: sees each step; it may call backward.
            grad: whether autograd records.
        """

        def visit(step: StepCall) -> Tensor:
            on_step(step)
            return step.sample.detach()  # the next stored state replaces it

        check_positional(conditioning)
        plan = Plan(visit, only=sorted(states), states=states)
        self._ready(conditioning).run(conditioning, num_steps, plan, grad=grad)

    def predict(
        self, conditioning: Conditioning, x: Tensor, *, timesteps: Tensor, num_steps: int, grad: bool = False
    ) -> Tensor:
        """The denoiser's output at one state, guidance applied.

        Args:
            conditioning: B rows.
            x: loop state (B, *S).
            timesteps: what the denoiser is told: () for all rows, or (B,), in the scale of `Levels.timesteps`.
            num_steps: steps of the schedule that the timesteps are taken from.
            grad: whether autograd records.

        Returns:
            Output in the sample's layout, (B, *S) float32.

        Raises:
            InputError: if the rows of a batch of this pipeline cannot stand at different timesteps.
        """
        check_positional(conditioning)
        if timesteps.ndim:
            self._check_per_sample(conditioning, x, timesteps, num_steps)
        return self._predicted(conditioning, x, timesteps, num_steps, grad)

    def decode(self, conditioning: Conditioning, x0: Tensor, *, grad: bool = False) -> Media:
        """A loop state as pixels.

        Args:
            conditioning: the B rows it belongs to.
            x0: loop state at the end of a run, (B, *S).
            grad: whether autograd records.

        Returns:
            Media (B, F, C, H, W) in [0, 1].
        """
        outcome = self._ready(conditioning).decode(conditioning, x0, grad)
        return media_of(outcome.output, self._fps(conditioning))

    def encode(self, conditioning: Conditioning, media: Media, seeds: Sequence[int] | None = None) -> Tensor:
        """Media as a loop state, the inverse of `decode` up to the autoencoder's loss.

        Args:
            conditioning: B rows that make media of this size.
            media: B rows.
            seeds: one a row, to draw from the autoencoder's posterior; None takes its mean.

        Returns:
            x0 (B, *S) float32.

        Raises:
            InputError: if sizes differ, or the pipeline's decoding cannot be run backwards.
        """
        like = self._driver.prepare(conditioning)[1]

        def to_decoder(x: Tensor) -> Tensor:
            return codec.decoder_input(self.vae, lambda: self._driver.decode(conditioning, x, x.requires_grad))

        generators = None if seeds is None else noise_generators(seeds)
        ndim = to_decoder(like).ndim
        latents = codec.autoencoder_latents(self.vae, media, ndim, generators)
        return codec.to_loop(to_decoder, latents, like)

    def turn_on_options(self, conditioning: Conditioning) -> None:
        """Turns on what is pending, each after a comparison with the plain run; by itself, at the first run.

        Raises:
            InputError: if an option is not available here, or changes the result.
        """
        waiting, self.pending = self.pending, []  # the comparison runs this pipeline too
        for option in waiting:
            self.measured[option.name] = options.turn_on(self, conditioning, option)

    def forget_text_encoders(self) -> None:
        """Frees the text encoders; only prompts that were encoded before can be used from here on."""
        self._driver.memo.forget_text_encoders()

    def why_not_per_sample(self, conditioning: Conditioning) -> str:
        """Why the rows of a batch cannot stand at different timesteps; empty where they can."""
        if conditioning.guidance_scale > 1 and self.family.guidance_in_batch:
            scale = conditioning.guidance_scale
            return f"guidance {scale} doubles the batch; use guidance_scale 1, or one timestep for all rows"
        if "get_timesteps" in tap.names_used(self.pipe):
            return "it starts from an image noised at one level; give one timestep for all rows"
        return self.family.why_not_per_sample(self.pipe)

    def require_replayable(self) -> None:
        """Checks that a stored state can be stepped again.

        Raises:
            InputError: if the scheduler carries state from step to step, or draws noise of its own.
        """
        reason = self.why_not_replayable()
        if reason:
            raise InputError(f"{self.name}: {reason}")

    def make_replayable(self) -> None:
        """Puts a deterministic one-step scheduler of the same noise levels in place of one that is not replayable.

        Raises:
            InputError: if the pipeline works with its own scheduler only.
        """
        if self.family.name == "lcm":
            raise InputError(f"{self.name} works with its own scheduler only; use StableDiffusionPipeline")
        if why_not_replayable(self.pipe.scheduler):
            self.pipe.scheduler = replayable(self.pipe.scheduler)

    def why_not_replayable(self) -> str:
        """Why a stored state cannot be stepped again; empty where it can."""
        return why_not_replayable(self.pipe.scheduler)

    def _ready(self, conditioning: Conditioning) -> Driver:
        if self.pending:
            self.turn_on_options(conditioning)
        return self._driver

    def _predicted(
        self, conditioning: Conditioning, x: Tensor, timesteps: Tensor, num_steps: int, grad: bool
    ) -> Tensor:
        seen: list[Tensor] = []

        def keep(step: StepCall) -> Tensor:
            seen.append(step.output)
            return step.sample.detach()

        plan = Plan(keep, only=[0], states={0: x}, timesteps=timesteps.to(self.device).unsqueeze(0))
        self._ready(conditioning).run(conditioning, num_steps, plan, grad=grad)
        return seen[0]

    def _check_per_sample(self, conditioning: Conditioning, x: Tensor, timesteps: Tensor, num_steps: int) -> None:
        reason = self.why_not_per_sample(conditioning)
        if not reason and not self._rows_agree:  # nobody has named this pipeline: try it once
            first, rows = (self._predicted(conditioning, x, t, num_steps, False)[0] for t in (timesteps[0], timesteps))
            self._rows_agree = bool((rows - first).abs().max() <= 0.05 * first.abs().max())
            reason = "" if self._rows_agree else "its output at a row's timestep depends on those of the other rows"
        if reason:
            raise InputError(f"{self.name} cannot put the rows of a batch at different timesteps: {reason}")

    def _fps(self, conditioning: Conditioning) -> float:
        return float(conditioning.call.get("frame_rate", self.family.fps))
