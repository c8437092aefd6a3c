"""What is known of families, and what is read off a pipeline nobody named."""

import pytest

from tests.tiny import build
from visalign.pipelines.families import FAMILIES, family_of
from visalign.pipelines.family import attention_projections

JOINT = {"add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_out.0", "to_q", "to_v"}
PLAIN = {"to_k", "to_out.0", "to_q", "to_v"}


@pytest.mark.parametrize(
    ("name", "family", "targets"),
    [
        ("sd3", "sd3", {f"attn.{p}" for p in JOINT}),
        ("flux", "flux", {f"attn.{p}" for p in JOINT}),
        ("qwen_image", "qwen", {f"attn.{p}" for p in JOINT}),
        ("sd15", "unet", {f"attn{i}.{p}" for i in (1, 2) for p in PLAIN}),
        ("sdxl", "unet", {f"attn{i}.{p}" for i in (1, 2) for p in PLAIN}),
        ("wan", "wan", {f"attn{i}.{p}" for i in (1, 2) for p in PLAIN}),
        ("z_image", "z_image", {f"attention.{p}" for p in PLAIN}),
        ("cogvideox", "cogvideox", {f"attn1.{p}" for p in PLAIN}),
    ],
)
def test_lora_targets_are_the_attention_projections(name, family, targets):
    found = family_of(build(name).pipe)
    assert found.name == family
    assert set(found.lora_targets) == targets


def test_the_longest_beginning_of_a_class_name_counts():
    assert family_of(build("hunyuan_video15").pipe).name == "hunyuan15"
    assert family_of(build("flux2").pipe).name == "flux2"
    assert family_of(build("qwen_image_edit").pipe).images is FAMILIES["QwenImageEdit"].images


def test_a_class_that_nobody_named_gets_the_defaults():
    pipe = build("sd3").pipe
    pipe.__class__ = type("SomethingNewPipeline", (type(pipe),), {})
    family = family_of(pipe)
    assert family.name == "generic"
    assert set(family.lora_targets) == {f"attn.{p}" for p in JOINT}


def test_loaders_of_lora_files_are_noticed():
    assert family_of(build("sd3").pipe).lora_loader
    assert not family_of(build("pixart_sigma").pipe).lora_loader


def test_no_target_is_a_list_of_layers():
    net = build("flux2").pipe.transformer
    targets = attention_projections([net])
    assert "attn.to_out.0" in targets
    assert "attn.to_out" not in targets
