"""Rollouts, replays and single evaluations on a few tiny pipelines."""

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from tests.pipelines.cases import close, controlled, counted, recorded
from tests.tiny import build
from visalign.pipelines.pipeline import Pipeline
from visalign.types import Conditioning, InputError, Media, Prompts


def test_noise_of_a_row_depends_on_its_seed_alone():
    pipeline, conditioning, num_steps = controlled("sd3")
    whole = pipeline.rollout(conditioning, [5, 6], num_steps)
    turned = pipeline.rollout(conditioning.take([1, 0]), [6, 5], num_steps)
    assert torch.equal(whole.initial, turned.initial.flip(0))
    assert close(turned.media.pixels.flip(0), whole.media.pixels)
    other = pipeline.rollout(conditioning, [5, 7], num_steps, decode=False)
    assert torch.equal(other.initial[0], whole.initial[0])
    assert not torch.equal(other.initial[1], whole.initial[1])


def test_a_run_draws_nothing_from_the_global_generator():
    pipeline, conditioning, num_steps = controlled("sd15_img2img")
    before = torch.get_rng_state()
    run = pipeline.rollout(conditioning, [0, 1], num_steps)
    pipeline.decode(conditioning, run.final)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_and_rows_must_match():
    pipeline, conditioning, num_steps = controlled("sd3")
    with pytest.raises(InputError, match="2 rows of conditioning came with 3 seeds"):
        pipeline.rollout(conditioning, [0, 1, 2], num_steps)


@pytest.mark.parametrize(("grad_from", "recorded_calls"), [(None, 0), (0, 4), (3, 1), (4, 0)])
def test_gradients_are_recorded_from_the_step_that_was_asked_for(grad_from, recorded_calls):
    pipeline, conditioning, _ = controlled("sd3")
    pipeline.pipe.transformer.requires_grad_(True)
    flags = []
    rule = lambda step: (flags.append(step.output.requires_grad), step.default())[1]
    run = pipeline.rollout(conditioning, [0, 1], 4, rule, grad_from=grad_from)
    assert flags == [False] * (4 - recorded_calls) + [True] * recorded_calls
    assert run.media.pixels.requires_grad == bool(recorded_calls)


def test_replay_may_call_backward_in_every_step():
    pipeline, conditioning, num_steps = controlled("sd3")
    _, steps, _ = recorded(pipeline, conditioning, num_steps)
    weight = pipeline.pipe.transformer.transformer_blocks[0].attn.to_q.weight.requires_grad_(True)
    sizes = []

    def learn(step):
        step.output.square().mean().backward()
        sizes.append(weight.grad.abs().sum().item())

    calls = counted(pipeline.pipe.transformer)
    pipeline.replay(conditioning, {i: steps[i].loop for i in (0, 2)}, num_steps, learn)
    assert len(calls) == 2
    assert 0 < sizes[0] != sizes[1]


def test_predict_with_gradients_reaches_the_state():
    pipeline, conditioning, num_steps = controlled("flux")
    run, _, _ = recorded(pipeline, conditioning, num_steps)
    x = run.initial.clone().requires_grad_()
    timesteps = run.levels.timesteps[[0, 2]]
    pipeline.predict(conditioning, x, timesteps=timesteps, num_steps=num_steps, grad=True).sum().backward()
    assert x.grad.abs().sum() > 0


def test_rows_at_different_timesteps_are_refused_with_the_reason():
    pipeline, conditioning, num_steps = controlled("sd3", guidance_scale=4.0)
    x = pipeline.rollout(conditioning, [0, 1], num_steps).initial
    with pytest.raises(InputError, match=r"guidance 4\.0 doubles the batch"):
        pipeline.predict(conditioning, x, timesteps=torch.tensor([900.0, 500.0]), num_steps=num_steps)
    together = pipeline.predict(conditioning, x, timesteps=torch.tensor(900.0), num_steps=num_steps)
    assert together.shape == x.shape


def test_a_pipeline_that_nobody_named_is_tried_before_its_rows_are_put_apart():
    pipeline, conditioning, num_steps = controlled("krea2")
    assert pipeline.family.name == "generic"
    run = pipeline.rollout(conditioning, [0, 1], num_steps)
    timesteps = run.levels.timesteps[[0, 2]]
    net = pipeline.pipe.transformer
    handle = net.register_forward_hook(lambda m, a, out: (out[0] + out[0].flip(0),))
    with pytest.raises(InputError, match="depends on those of the other rows"):
        pipeline.predict(conditioning, run.initial, timesteps=timesteps, num_steps=num_steps)
    handle.remove()
    assert pipeline.predict(conditioning, run.initial, timesteps=timesteps, num_steps=num_steps).isfinite().all()


def test_timesteps_off_the_schedule_are_refused_where_the_input_is_scaled():
    pipeline, conditioning, num_steps = controlled("sd15_euler")
    x = pipeline.rollout(conditioning, [0, 1], num_steps).initial
    with pytest.raises(InputError, match="not on the schedule"):
        pipeline.predict(conditioning, x, timesteps=torch.tensor([500.0, 501.0]), num_steps=num_steps)


@pytest.mark.parametrize("name", ["wan_unipc", "cogvideox_dpm", "sana_dpm", "pixart_sigma_dpm"])
def test_schedulers_with_memory_are_refused_and_can_be_replaced(name):
    pipeline, conditioning, num_steps = controlled(name)
    with pytest.raises(InputError, match="make_replayable"):
        pipeline.require_replayable()
    pipeline.make_replayable()
    pipeline.require_replayable()
    assert pipeline.rollout(conditioning, [0, 1], num_steps).media.pixels.isfinite().all()


def test_a_pipeline_that_needs_its_own_scheduler_says_so():
    pipeline, _, _ = controlled("lcm")
    with pytest.raises(InputError, match="adds noise of its own"):
        pipeline.require_replayable()
    with pytest.raises(InputError, match="works with its own scheduler only"):
        pipeline.make_replayable()


def test_replacing_a_flow_scheduler_keeps_its_shift():
    pipeline, _, _ = controlled("wan")
    pipeline.pipe.scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    pipeline.make_replayable()
    assert pipeline.pipe.scheduler.config.shift == 5.0


def test_arguments_that_count_the_visited_steps_cannot_be_replayed():
    pipeline, conditioning, num_steps = controlled("sd3", skip_guidance_layers=[0])
    x = torch.zeros(2, 4, 8, 8)
    with pytest.raises(InputError, match="skip_guidance_layers of the conditioning count the steps"):
        pipeline.replay(conditioning, {0: x}, num_steps, lambda step: None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heigth": 8}, "StableDiffusion3Pipeline takes no argument heigth; it takes"),
        ({"generator": None}, "generator cannot be given in a conditioning"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changed, message):
    pipeline, conditioning, num_steps = controlled("sd3", **changed)
    with pytest.raises(InputError, match=message):
        pipeline.rollout(conditioning, [0, 1], num_steps)


def test_guidance_where_the_pipeline_takes_none_is_refused():
    pipeline, conditioning, num_steps = controlled("krea2")
    pipeline.family.__dict__["guidance"] = "no_such_argument"
    strong = Conditioning(conditioning.prompts, 3.0, conditioning.call, conditioning.tensors)
    with pytest.raises(InputError, match="takes no 'no_such_argument' argument"):
        pipeline.rollout(strong, [0, 1], num_steps)


def test_guidance_reaches_a_guider_component():
    pipeline, conditioning, num_steps = controlled("hunyuan_video15")
    strong = Conditioning(conditioning.prompts, 3.0, conditioning.call, both_prompts(conditioning))
    weak = pipeline.rollout(conditioning, [0, 1], num_steps, decode=False)
    assert not close(pipeline.rollout(strong, [0, 1], num_steps, decode=False).final, weak.final, 1e-2)
    assert pipeline.pipe.guider.guidance_scale == 1.0


def both_prompts(conditioning):
    """The tensors with negative prompts that differ from the prompts."""
    known = dict(conditioning.tensors)
    for name in list(known):
        if not name.startswith("negative_"):
            known.setdefault(f"negative_{name}", known[name] if "mask" in name else -known[name])
    return known


def test_conditioning_images_of_a_batch_that_shares_one_must_be_equal():
    case = build("wan_i2v")
    pictures = (torch.zeros(3, 32, 32), torch.ones(3, 32, 32))
    conditioning = Conditioning(Prompts(("a", "b"), images=pictures), 1.0, case.call, case.tensors)
    with pytest.raises(InputError, match="conditions all rows of a batch on one image"):
        Pipeline(case.pipe).rollout(conditioning, [0, 1], 2)
    same = Conditioning(Prompts(("a", "b"), images=pictures[:1] * 2), 1.0, case.call, case.tensors)
    assert len(Pipeline(case.pipe).rollout(same, [0, 1], 2).media) == 2


def test_media_of_images_and_videos():
    pipeline, conditioning, num_steps = controlled("sd3")
    media = pipeline.rollout(conditioning, [0, 1], num_steps).media
    assert media.pixels.shape == (2, 1, 3, 32, 32)
    assert media.fps == 0
    pipeline, conditioning, num_steps = controlled("ltx", frame_rate=12)
    media = pipeline.rollout(conditioning, [0, 1], num_steps).media
    assert media.pixels.shape[:3] == (2, conditioning.call["num_frames"], 3)
    assert media.fps == 12


def test_encoding_draws_from_the_posterior_only_when_given_seeds():
    pipeline, conditioning, _ = controlled("flux")
    media = Media.of_images(torch.rand(2, 3, 32, 32))
    mean = pipeline.encode(conditioning, media)
    assert torch.equal(mean, pipeline.encode(conditioning, media))
    drawn = pipeline.encode(conditioning, media, seeds=[1, 2])
    assert torch.equal(drawn, pipeline.encode(conditioning, media, seeds=[1, 2]))
    assert not torch.equal(drawn, mean)


def test_encoding_media_of_another_size_is_refused():
    pipeline, conditioning, _ = controlled("sd3")
    with pytest.raises(InputError, match="bring media and conditioning to one height"):
        pipeline.encode(conditioning, Media.of_images(torch.rand(2, 3, 64, 64)))
    with pytest.raises(InputError, match="videos of 3 frames were given to a pipeline that makes images"):
        pipeline.encode(conditioning, Media(torch.rand(2, 3, 3, 32, 32)))


def test_a_pipeline_is_taken_over_frozen_and_in_eval_mode():
    case = build("sd3_text")
    case.pipe.text_encoder_3.train()
    pipeline = Pipeline(case.pipe)
    modules = [m for m in case.pipe.components.values() if isinstance(m, torch.nn.Module)]
    assert not any(m.training or any(p.requires_grad for p in m.parameters()) for m in modules)
    assert list(pipeline.denoisers) == ["transformer"]
    assert list(controlled("wan22")[0].denoisers) == ["transformer", "transformer_2"]
