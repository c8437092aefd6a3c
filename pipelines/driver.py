"""Calls of one pipeline: its arguments, its patches, and the tap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visalign.pipelines import tap
from visalign.pipelines.call import arguments, noise_generators
from visalign.pipelines.encoding import PromptMemo
from visalign.pipelines.family import Family
from visalign.pipelines.media import mean_posterior
from visalign.pipelines.steps import Plan, StepCall
from visalign.types import Conditioning, Levels

# For calls that only decode: enough that no image-to-image strength leaves none of them.
ENOUGH_STEPS = 20


class Driver:
    """Makes the calls of one pipeline, with its prompts remembered.

    Attributes:
        pipe: the diffusers pipeline.
        family: what differs from other families.
        memo: its `encode_prompt`.
    """

    def __init__(self, pipe: Any, family: Family) -> None:
        self.pipe, self.family, self.memo = pipe, family, PromptMemo(pipe)

    def prepare(self, conditioning: Conditioning, num_steps: int = ENOUGH_STEPS) -> tuple[Levels, Tensor]:
        """Noise levels of a call and the loop state it would start from; the denoiser is not run.

        Args:
            conditioning: B rows.
            num_steps: denoising steps.
        """
        call = arguments(self.pipe, self.family, conditioning, num_steps, None, "latent")
        with mean_posterior(self.pipe):
            return tap.prepare(self.pipe, call, self._patches(conditioning))

    def run(
        self,
        conditioning: Conditioning,
        num_steps: int,
        plan: Plan,
        *,
        grad: bool = False,
        seeds: Sequence[int] | None = None,
        output_type: str = "latent",
    ) -> tap.Outcome:
        """One call.

        Args:
            conditioning: B rows.
            num_steps: denoising steps.
            plan: what differs from the pipeline's own run.
            grad: whether autograd records from the start.
            seeds: one a row; None where the noise does not matter.
            output_type: `pt` or `latent`.
        """
        call = arguments(self.pipe, self.family, conditioning, num_steps, seeds, output_type)
        if self.family.lone_generator(self.pipe):
            generators = noise_generators(range(len(conditioning)) if seeds is None else seeds)
        else:
            generators = None
        with mean_posterior(self.pipe):
            return tap.run(self.pipe, call, plan, grad=grad, patches=self._patches(conditioning), generators=generators)

    def decode(self, conditioning: Conditioning, x0: Tensor, grad: bool) -> tap.Outcome:
        """A call that ends with the given loop state, without a denoiser call where the pipeline allows it.

        Args:
            conditioning: B rows.
            x0: loop state (B, *S).
            grad: whether autograd records the decoding.
        """
        if tap.decodes_alone(self.pipe):
            return self.run(conditioning, ENOUGH_STEPS, Plan(only=[], final=x0), grad=grad, output_type="pt")

        def last(step: StepCall) -> Tensor:
            torch.set_grad_enabled(grad)  # the state is replaced after this step: no need to record its denoiser call
            return step.sample

        return self.run(conditioning, ENOUGH_STEPS, Plan(last, only=[-1], final=x0), output_type="pt")

    def _patches(self, conditioning: Conditioning) -> dict[str, Any]:
        patches: dict[str, Any] = self.memo.patches()
        if self.family.guidance == "guider":
            patches["guider"] = self.pipe.guider.new(guidance_scale=conditioning.guidance_scale)
        return patches
