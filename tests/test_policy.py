"""One adapter, many views: reference, snapshots, averages; files that diffusers loads."""

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.tiny import build
from visalign import lora
from visalign.config import LoraConfig
from visalign.pipelines.pipeline import Pipeline
from visalign.policy import Policy
from visalign.types import Conditioning, InputError, Prompts


@pytest.fixture
def actor():
    case = build("sd3")
    pipeline = Pipeline(case.pipe)
    policy = Policy(pipeline.denoisers, LoraConfig(rank=4, alpha=16), pipeline.family.lora_targets, seed=0)
    conditioning = Conditioning(Prompts(("a", "b")), case.guidance_scale, case.call, case.tensors)
    with torch.no_grad():
        start = pipeline.rollout(conditioning, [1, 2], 3, decode=False).initial
    return pipeline, policy, lambda p=pipeline: lora.one_step(p, conditioning, start, 3)


def disturb(policy, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters.values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def test_the_start_is_the_base_and_the_reference_stays_it(actor):
    _, policy, output = actor
    with policy.using("reference"):
        base = output()
    assert torch.equal(output(), base)
    disturb(policy)
    assert not torch.equal(output(), base)
    with policy.using("reference"):
        assert torch.equal(output(), base)
    assert all(p.requires_grad for p in policy.parameters.values())


def test_snapshots_swap_in_and_out_also_after_an_exception(actor):
    _, policy, output = actor
    policy.snapshot("old")
    before = output()
    disturb(policy)
    after = output()
    with pytest.raises(KeyError), policy.using("old"):  # noqa: PT012
        assert torch.equal(output(), before)
        raise KeyError
    assert torch.equal(output(), after)


def test_averages_move_by_the_decay(actor):
    _, policy, _ = actor
    policy.snapshot("ema")
    start = policy.weights()
    disturb(policy)
    policy.average("ema", 0.9)
    for key, value in policy.snapshots["ema"].items():
        assert torch.allclose(value, 0.9 * start[key] + 0.1 * policy.parameters[key].detach(), atol=1e-7)


def test_initialisation_is_seeded_and_leaves_the_global_generator_alone(actor):
    _, policy, _ = actor
    torch.manual_seed(5)
    case = build("sd3")
    expected = torch.random.get_rng_state()
    again = Policy(Pipeline(case.pipe).denoisers, LoraConfig(rank=4, alpha=16), ("to_q", "to_k", "to_v"), seed=0)
    assert torch.equal(torch.random.get_rng_state(), expected)
    key = next(k for k in again.parameters if "to_q" in k)
    assert torch.equal(again.parameters[key], policy.parameters[key])


def test_masters_are_float32_on_a_bfloat16_base():
    pipe = build("sd3").pipe.to(torch.bfloat16)
    policy = Policy(Pipeline(pipe).denoisers, LoraConfig(rank=4, alpha=8), ("to_q",), seed=0)
    assert {p.dtype for p in policy.parameters.values()} == {torch.float32}


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(InputError, match=r"lora\.targets"):
        Policy(Pipeline(build("sd3").pipe).denoisers, LoraConfig(targets=["to_nothing"]), (), seed=0)


def test_a_saved_lora_has_its_alpha_folded_and_gives_the_same_output_in_plain_diffusers(actor, tmp_path):
    _, policy, output = actor
    disturb(policy)
    trained = output()
    lora.save(policy, tmp_path / "lora")
    fresh = Pipeline(build("sd3").pipe)
    assert isinstance(fresh.pipe, DiffusionPipeline)
    base = output(fresh)
    fresh.pipe.load_lora_weights(str(tmp_path / "lora"))
    assert torch.allclose(output(fresh), trained, atol=1e-5)
    assert not torch.allclose(output(fresh), base, atol=1e-3)


def test_load_puts_a_lora_on_pipelines_that_have_no_loader(actor, tmp_path):
    _, policy, output = actor
    disturb(policy)
    lora.save(policy, tmp_path / "lora")
    fresh = Pipeline(build("sd3").pipe)
    lora.load(fresh, tmp_path / "lora")
    assert torch.allclose(output(fresh), output(), atol=1e-5)


def test_a_folded_lora_continues_in_a_policy(actor, tmp_path):
    _, policy, output = actor
    disturb(policy)
    lora.save(policy, tmp_path / "lora")
    trained = output()
    disturb(policy, seed=2)
    policy.load_folded(lora.read(tmp_path / "lora"))
    assert torch.allclose(output(), trained, atol=1e-5)


def test_files_that_are_no_lora_are_refused(actor, tmp_path):
    pipeline, policy, _ = actor
    with pytest.raises(InputError, match=r"pytorch_lora_weights\.safetensors"):
        lora.load(pipeline, tmp_path)
    (tmp_path / "adapter.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"adapter\.bin.*only safetensors"):
        lora.load(pipeline, tmp_path)
    lora.save(policy, tmp_path / "lora")
    file = tmp_path / "lora" / lora.FILE
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        lora.read(tmp_path / "lora")
