"""The tap: what the rule sees, what is put back, and what happens in between."""

from dataclasses import replace

import pytest
import torch

from tests.pipelines.cases import close, controlled, counted, recorded, same_state, state_of
from visalign.pipelines import tap
from visalign.pipelines.steps import Plan
from visalign.types import InputError, RunError


class Failure(Exception):
    pass


@pytest.mark.parametrize("name", ["sd3", "sd15_img2img", "wan"])
def test_everything_is_restored_after_an_exception(name):
    pipeline, conditioning, num_steps = controlled(name)
    before = state_of(pipeline.pipe), state_of(pipeline.pipe.scheduler)

    def fail(step):
        raise Failure

    with pytest.raises(Failure):
        pipeline.rollout(conditioning, [0, 1], num_steps, fail, grad_from=0)
    assert same_state(before[0], pipeline.pipe)
    assert same_state(before[1], pipeline.pipe.scheduler)
    assert "encode" not in vars(pipeline.pipe.vae)
    assert torch.is_grad_enabled()


def test_a_run_may_be_nested_in_another():
    pipeline, conditioning, num_steps = controlled("sd15_euler", guidance_scale=3.0)
    plain, steps, _ = recorded(pipeline, conditioning, num_steps)
    unguided = replace(conditioning, guidance_scale=1.0)
    again = []

    def rule(step):
        again.append(pipeline.predict(conditioning, step.loop, timesteps=step.timestep, num_steps=num_steps))
        pipeline.decode(unguided, step.loop)
        return step.default()

    nested = pipeline.rollout(conditioning, [3, 4], num_steps, rule)
    assert torch.equal(nested.final, plain.final)
    assert all(close(found, step.output) for found, step in zip(again, steps, strict=True))


def test_image_to_video_loop_holds_more_than_the_scheduler_sees():
    pipeline, conditioning, num_steps = controlled("ltx_i2v")
    _, steps, following = recorded(pipeline, conditioning, num_steps)
    assert steps[0].loop.ndim == 3
    assert steps[0].sample.ndim == 5
    frames = conditioning.call["num_frames"]
    ratio = pipeline.pipe.vae_temporal_compression_ratio
    assert steps[0].sample.shape[2] == (frames - 1) // ratio
    assert close(steps[1].sample, following[0])


def test_sound_that_is_denoised_along_is_part_of_the_loop_state():
    pipeline, conditioning, num_steps = controlled("ltx2")
    run, steps, _ = recorded(pipeline, conditioning, num_steps)
    sound = steps[0].loop[:, steps[0].sample[0].numel() :]
    assert sound.shape[1] > 0
    assert close(steps[0].loop, run.initial)
    silent = torch.cat([steps[1].sample.flatten(1), torch.zeros_like(sound)], dim=1)
    outputs = []
    for state in (steps[1].loop, silent):
        pipeline.replay(conditioning, {1: state}, num_steps, lambda s: outputs.append(s.output), grad=False)
    assert close(outputs[0], steps[1].output)
    assert not close(outputs[1], steps[1].output, 1e-3)


def test_a_pipeline_that_writes_into_its_state_does_not_spoil_the_record():
    pipeline, conditioning, num_steps = controlled("kandinsky5")
    run, steps, following = recorded(pipeline, conditioning, num_steps)
    assert torch.equal(steps[0].loop, run.initial)
    assert not torch.equal(steps[0].sample, following[0])
    assert torch.equal(steps[1].sample, following[0])


@pytest.mark.parametrize("name", ["sd3", "sd15", "sd15_euler", "sd15_img2img"])
def test_own_step_leads_from_skipped_steps_to_the_next_of_the_full_run(name):
    pipeline, conditioning, num_steps = controlled(name)
    _, steps, following = recorded(pipeline, conditioning, num_steps)
    found = []
    states = {i: steps[i].loop for i in (0, 2)}
    pipeline.replay(conditioning, states, num_steps, lambda step: found.append(step.default()), grad=False)
    assert close(found[0], following[0])
    assert close(found[1], following[2])


def test_a_rule_that_never_asks_for_the_own_step_still_moves_a_counting_scheduler():
    pipeline, conditioning, _ = controlled("sd15_euler")
    states, outputs = [], []

    def ancestral(step):
        states.append(step.sample)
        outputs.append(step.output)
        return step.sample * step.levels.s[step.index + 1].float() / step.levels.s[step.index].float()

    pipeline.rollout(conditioning, [0, 1], 4, ancestral)
    seen = []
    pipeline.replay(conditioning, dict(enumerate(states)), 4, lambda step: seen.append(step.output), grad=False)
    assert all(close(a, b) for a, b in zip(seen, outputs, strict=True))
    again = []
    for i, state in enumerate(states):
        pipeline.replay(conditioning, {i: state}, 4, lambda step: again.append(step.output), grad=False)
    assert all(close(a, b) for a, b in zip(again, outputs, strict=True))


def test_a_state_that_does_not_fit_is_named():
    pipeline, conditioning, num_steps = controlled("sd3")
    with pytest.raises(InputError, match=r"\(1, 4, 9, 9\) was given, but this call holds \(2, 4, "):
        pipeline.rollout(conditioning, [0, 1], num_steps, initial=torch.zeros(1, 4, 9, 9))


def test_levels_and_decode_do_not_call_the_denoiser():
    pipeline, conditioning, num_steps = controlled("sd15_img2img")
    final = pipeline.rollout(conditioning, [0, 1], num_steps).final
    calls = counted(pipeline.pipe.unet)
    assert len(pipeline.levels(conditioning, num_steps)) == 3
    pipeline.decode(conditioning, final)
    assert not calls


def test_levels_of_image_to_image_are_those_that_are_walked():
    pipeline, conditioning, num_steps = controlled("sd3_img2img")
    run, steps, _ = recorded(pipeline, conditioning, num_steps)
    assert [step.index for step in steps] == [0, 1, 2]
    assert [float(s.timestep) for s in steps] == run.levels.timesteps.tolist()
    assert run.levels.s[0] < 1


def test_bfloat16_in_float32_out():
    pipeline, conditioning, num_steps = controlled("sd3_text", torch.bfloat16)
    run, steps, following = recorded(pipeline, conditioning, num_steps)
    assert pipeline.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for step in steps for t in (step.output, step.sample))
    assert all(step.loop.dtype == torch.bfloat16 for step in steps)
    assert following[0].dtype == run.final.dtype == run.media.pixels.dtype == torch.float32
    assert torch.equal(steps[1].sample, following[0].bfloat16().float())
    replayed = []
    pipeline.replay(conditioning, {1: steps[1].loop}, num_steps, lambda s: replayed.append(s.output), grad=False)
    assert torch.equal(replayed[0], steps[1].output)


def test_a_pipeline_without_prepare_latents_takes_no_state():
    pipeline, _conditioning, num_steps = controlled("sd3")

    class Closed(type(pipeline.pipe)):
        def __call__(self, num_inference_steps, **kwargs):
            self.scheduler.set_timesteps(num_inference_steps)
            x = torch.zeros(1, 2)
            for t in self.scheduler.timesteps:
                x = self.scheduler.step(x + 1, t, x).prev_sample
            return (x,)

    pipeline.pipe.__class__ = Closed
    outcome = tap.run(pipeline.pipe, {"num_inference_steps": num_steps}, Plan())
    assert torch.allclose(outcome.final, outcome.output)
    assert outcome.final.min() < 0
    with pytest.raises(InputError, match="Closed has no prepare_latents"):
        tap.run(pipeline.pipe, {"num_inference_steps": num_steps}, Plan(states={0: torch.zeros(1, 2)}))


def test_saturated_pixels_with_gradients_are_an_error():
    pipeline, conditioning, _ = controlled("sd3")
    state = pipeline.rollout(conditioning, [0, 1], 2).final.requires_grad_()
    with torch.no_grad():
        pipeline.pipe.vae.decoder.conv_out.bias.fill_(1e4)
    assert pipeline.decode(conditioning, state).pixels.min() == 1
    with pytest.raises(RunError, match="every pixel of the decoded output is 0 or 1"):
        pipeline.decode(conditioning, state, grad=True)
