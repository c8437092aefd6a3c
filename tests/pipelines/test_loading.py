"""Pipelines from folders, options that are compared before use, and what is refused."""

import math
import sys

import pytest
import torch

from tests.pipelines.cases import controlled
from tests.tiny import build
from visalign.pipelines import options
from visalign.pipelines.loading import load_pipeline
from visalign.types import Conditioning, InputError, Prompts


def conditioning_of(call):
    return Conditioning(Prompts(("a red circle", "two blue squares")), 1.0, call)


def test_a_folder_is_loaded_as_it_was_saved(tiny_model):
    folder, call = tiny_model
    pipeline = load_pipeline(folder)
    found = pipeline.rollout(conditioning_of(call), [0, 1], 2).media.pixels
    case = build("sd3_text")
    from visalign.pipelines.pipeline import Pipeline

    made = Pipeline(case.pipe).rollout(conditioning_of(call), [0, 1], 2).media.pixels
    torch.testing.assert_close(found, made, rtol=0, atol=1e-5)  # files place weights elsewhere: other sums
    assert load_pipeline(folder, dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "model.ckpt", "is a single file; expected is a folder with model_index.json"),
        (lambda p: p, "has no model_index.json"),
        (lambda p: p / "nowhere", "there is no folder"),
    ],
)
def test_what_is_no_pipeline_is_refused(tmp_path, make, message):
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        load_pipeline(make(tmp_path))


def test_weights_that_are_not_safetensors_are_refused(tmp_path):
    build("sd15").pipe.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(InputError, match="could not be loaded"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dtype": "float8"}, "dtype 'float8' is not known"),
        ({"attention": "flashier"}, "there is no attention backend 'flashier'; there are auto"),
        ({"offload": "model", "device": "cpu"}, "needs an accelerator"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(tiny_model, option, message):
    with pytest.raises(InputError, match=message):
        load_pipeline(tiny_model[0], **option)


def test_a_hub_id_that_is_not_here_is_named():
    with pytest.raises(InputError, match="'nobody/nothing' could not be loaded"):
        load_pipeline("nobody/nothing")


def test_a_switch_that_would_do_nothing_is_refused(tiny_model):
    folder, call = tiny_model
    pipeline = load_pipeline(folder, attention="_native_math")
    with pytest.raises(InputError, match="does not go through diffusers' dispatcher"):
        pipeline.rollout(conditioning_of(call), [0, 1], 2)


def test_attention_is_compared_and_stays_with_its_model():
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    everywhere = _AttentionBackendRegistry._active_backend
    pipeline, conditioning, num_steps = controlled("flux")
    pipeline.pending.append(options.attention("_native_math", pipeline.dtype))
    pipeline.rollout(conditioning, [0, 1], num_steps)
    assert pipeline.measured["attention: _native_math"] < 1e-5
    assert not pipeline.pending
    assert _AttentionBackendRegistry._active_backend is everywhere


def test_attention_that_is_not_installed_is_refused():
    pipeline, conditioning, num_steps = controlled("flux")
    pipeline.pending.append(options.attention("flash", pipeline.dtype))
    with pytest.raises(InputError, match="is not available here"):
        pipeline.rollout(conditioning, [0, 1], num_steps)
    assert pipeline.rollout(conditioning, [0, 1], num_steps).media.pixels.isfinite().all()


@pytest.mark.parametrize("name", ["sd15", "z_image"])
def test_xformers_is_refused_on_a_machine_without_it(name):
    pipeline, conditioning, _num_steps = controlled(name)
    with pytest.raises(InputError, match="is not available here"):
        options.turn_on(pipeline, conditioning, options.attention("xformers", pipeline.dtype))


def test_an_option_that_changes_the_result_is_refused_and_off_again():
    pipeline, conditioning, num_steps = controlled("sd3")
    plain = pipeline.rollout(conditioning, [0, 1], num_steps).final

    def apply(pipeline):
        handle = pipeline.pipe.transformer.register_forward_hook(lambda m, a, out: (out[0] * 1.1,))
        return handle.remove

    with pytest.raises(InputError, match=r"louder changes the result of StableDiffusion3Pipeline by 0\.1 "):
        options.turn_on(pipeline, conditioning, options.Option("louder", options.one_step, 0.05, apply))
    assert torch.equal(pipeline.rollout(conditioning, [0, 1], num_steps).final, plain)


def test_tiling_is_compared_on_pixels(tiny_model):
    folder, call = tiny_model
    pipeline = load_pipeline(folder, tiling=True)
    pipeline.rollout(conditioning_of(call), [0, 1], 2)
    assert pipeline.measured["tiling"] <= 5e-2
    assert pipeline.vae.use_tiling


def test_tiling_is_for_what_does_not_fit_otherwise(monkeypatch):
    pipeline, conditioning, _ = controlled("sd3")
    decode = pipeline.vae.decode

    def small(z, **kwargs):
        if not pipeline.vae.use_tiling:
            raise torch.OutOfMemoryError
        return decode(z, **kwargs)

    monkeypatch.setattr(pipeline.vae, "decode", small)
    assert math.isnan(options.turn_on(pipeline, conditioning, options.tiled()))
    assert pipeline.rollout(conditioning, [0, 1], 2).media.pixels.isfinite().all()


@pytest.mark.slow
def test_compile_keeps_names_and_results(tiny_model):
    folder, call = tiny_model
    pipeline = load_pipeline(folder, compile=True)
    names = set(pipeline.pipe.transformer.state_dict())
    pipeline.rollout(conditioning_of(call), [0, 1], 2)
    assert pipeline.measured["compile"] < 1e-3
    assert set(pipeline.pipe.transformer.state_dict()) == names


def blocks(width=64):
    """A net of two blocks, of which the layers inside may be quantised."""
    return torch.nn.ModuleDict(
        {"blocks": torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, 8))}
    )


@pytest.mark.parametrize(("kind", "library"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_quantised_layers_are_compared_one_by_one(kind, library):
    pytest.importorskip(library)
    net, x = blocks(), torch.randn(4, 64)
    plain = net["blocks"](x)
    assert 0 < options.quantise(net, kind) < options.LAYER_TOLERANCE[kind]
    assert 0 < options.deviation(net["blocks"](x), plain) < 2 * options.LAYER_TOLERANCE[kind]


@pytest.mark.parametrize(("kind", "library"), [("int8", "torchao.quantization"), ("nf4", "bitsandbytes.nn")])
def test_quantising_without_the_library_names_the_extra(monkeypatch, kind, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"needs {library.split('.')[0]}; pip install visalign\[quant\]"):
        options.quantise(blocks(), kind)


def test_quantising_a_net_of_small_layers_is_refused():
    with pytest.raises(InputError, match="found no linear layer whose inputs are a multiple of 64"):
        options.quantise(blocks(32), "int8")
