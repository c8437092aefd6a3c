"""Special-token heads on a real Qwen2-VL: file layouts, loading, and scores against a forward pass written out here."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.rewards.tiny_qwen import (
    HIDDEN,
    loads,
    old_names,
    on_meta,
    real_config,
    resized,
    states_at,
    text_layout,
    tiny_base,
    tiny_model,
    vision_layout,
)
from visalign.rewards import hpsv3 as hpsv3_module
from visalign.rewards.base import Weights
from visalign.rewards.check import check_reward
from visalign.rewards.hpsv3 import HPSv3
from visalign.rewards.token_head import Head, TokenHead, assemble, last_positions, renamed, token_head, token_positions
from visalign.types import InputError, Media, Prompts

PROMPTS = Prompts(("a cat", "two blue squares beside a much longer sentence", "a dog"))
IMAGES = torch.rand(3, 3, 56, 84, generator=torch.Generator().manual_seed(0))


def hps_head():
    torch.manual_seed(2)
    sizes = ((0, 1024, HIDDEN), (3, 16, 1024), (5, 2, 16))
    state = {f"rm_head.{i}.weight": torch.randn(out, width) / width**0.5 for i, out, width in sizes}
    return state | {f"rm_head.{i}.bias": torch.randn(out) for i, out, _ in sizes}


@pytest.fixture(scope="module")
def hps(tmp_path_factory):
    """A base folder, a file in the released layout, the model in it, and the reward."""
    folder = tmp_path_factory.mktemp("hps")
    base, head = tiny_base(folder / "base"), hps_head()
    model = tiny_model(base, ["<|Reward|>"])
    save_file(old_names(model.state_dict()) | head, folder / "HPSv3.safetensors")
    return (
        base,
        str(folder / "HPSv3.safetensors"),
        model,
        head,
        HPSv3(base, str(folder / "HPSv3.safetensors"), dtype="float32"),
    )


def test_hpsv3_file_layout():
    head = [("0", 1024, 3584), ("3", 16, 1024), ("5", 2, 16)]
    layout = [*vision_layout(3584), *text_layout(3584, 18944, 512, 151658)]
    layout += [(f"rm_head.{n}.weight", (out, width)) for n, out, width in head]
    layout += [(f"rm_head.{n}.bias", (out,)) for n, out, _ in head]
    _, top, size = loads(layout, real_config(3584, 18944, 28, 512), hpsv3_module.HEAD)
    assert [type(layer).__name__ for layer in top] == ["Linear", "ReLU", "Identity", "Linear", "ReLU", "Linear"]
    assert 0 < 16_584_387_300 - size < 120 * len(layout)  # the released file: these tensors and a header


def test_a_file_of_other_shapes_is_refused():
    layout = dict(text_layout(3584, 18944, 512, 151658)) | dict(vision_layout(3584)) | {"rm_head.0.weight": (4, 3584)}
    state = {renamed(n): v for n, v in on_meta(layout.items()).items()}
    with pytest.raises(InputError, match="does not fit the base model"):
        assemble(real_config(3584, 18944, 28, 512), state, hpsv3_module.HEAD, torch.bfloat16)
    with pytest.raises(InputError, match="no Qwen-VL with a reward head"):
        assemble(real_config(3584, 18944, 28, 512), {"a": torch.ones(1)}, hpsv3_module.HEAD, torch.bfloat16)


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_names_of_all_versions_become_todays(prefix):
    pairs = {
        "visual.blocks.0.norm1.weight": "visual.blocks.0.norm1.weight",
        "model.visual.blocks.0.norm1.weight": "visual.blocks.0.norm1.weight",
        "model.layers.1.mlp.up_proj.weight": "language_model.layers.1.mlp.up_proj.weight",
        "model.language_model.layers.1.mlp.up_proj.weight": "language_model.layers.1.mlp.up_proj.weight",
        "model.embed_tokens.weight": "language_model.embed_tokens.weight",
        "rm_head.weight": "rm_head.weight",
        "lm_head.weight": "lm_head.weight",
    }
    assert {renamed(prefix + old) for old in pairs} == set(pairs.values())
    assert all(renamed(prefix + old) == new for old, new in pairs.items())


def test_positions():
    ids = torch.tensor([[7, 5, 9, 5, 0], [9, 0, 0, 0, 5]])
    assert token_positions(ids, torch.tensor([9, 5])).tolist() == [[2, 1], [0, 4]]
    assert last_positions(torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])).tolist() == [[2], [3]]


def expected(hps, pictures, prompts):
    """Mean and spread of each row, by hand, from pictures at the size that the model sees."""
    _, _, model, head, reward = hps
    rows = []
    for picture, prompt in zip(pictures, prompts.texts):
        text = reward.template.replace("{prompt}", prompt)
        state = states_at(model, reward.net.processor, "image", picture, text, ["<|Reward|>"])[0]
        for i in (0, 3, 5):
            state = head[f"rm_head.{i}.weight"] @ state + head[f"rm_head.{i}.bias"]
            state = state if i == 5 else state.clamp(min=0)
        rows.append(state)
    return torch.stack(rows)


@torch.no_grad()
def test_hpsv3_against_the_formula(hps):
    scores = hps[4].score(Media.of_images(IMAGES), PROMPTS)
    rows = expected(hps, resized(IMAGES, 392, 560), PROMPTS)
    torch.testing.assert_close(scores.values, rows[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores.components["sigma"], rows[:, 1].exp(), rtol=1e-4, atol=1e-5)
    assert float(scores.values.std()) > 1e-3


@torch.no_grad()
def test_positions_are_plain_where_the_base_model_has_three_of_them(hps):
    net, model = hps[4].net, hps[2].model
    picture = resized(IMAGES[:1], 392, 560)[0]
    batch = net.inputs([picture], ["a cat <|Reward|>"], "image")
    kinds = (batch["input_ids"] == net.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    place = token_positions(batch["input_ids"], net.tokens)[0]
    of_base = model(**batch, mm_token_type_ids=kinds).last_hidden_state[0, place]
    plain = states_at(hps[2], net.processor, "image", picture, "a cat <|Reward|>", ["<|Reward|>"])
    torch.testing.assert_close(net.head(plain)[None], net([picture], ["a cat <|Reward|>"], "image"))
    assert not torch.allclose(net.head(of_base), net.head(plain), atol=1e-3)


@torch.no_grad()
def test_hpsv3_sees_what_pillow_and_the_original_processor_make(hps):
    levels = (IMAGES[0] * 255).round().to(torch.uint8)
    small = Image.fromarray(np.asarray(levels.permute(1, 2, 0)))
    net = hps[4].net
    theirs = net.processor.image_processor(small.resize((560, 392), Image.Resampling.BICUBIC), do_resize=False)
    ours = net.inputs(list(net.fitted(levels[None] / 255, 200704, 200704)), ["a <|Reward|>"], "image")
    assert theirs["image_grid_thw"].tolist() == ours["image_grid_thw"].tolist() == [[1, 28, 40]]
    gap = (theirs["pixel_values"] - ours["pixel_values"]).abs() * 0.27 * 255  # in levels of 8 bits
    assert float(gap.mean()) < 0.5
    assert float(gap.max()) < 2


def test_hpsv3_keeps_the_contract(hps):
    check_reward(hps[4], Media.of_images(IMAGES), PROMPTS)


def test_the_gradient_is_the_slope(hps):
    pixels = (IMAGES[:1] * 0.5 + 0.25).requires_grad_()
    prompts = PROMPTS.take([1])
    (gradient,) = torch.autograd.grad(hps[4].score_with_grad(Media.of_images(pixels), prompts).values.sum(), pixels)
    step = 0.05 * gradient / gradient.norm()
    ends = [hps[4].score(Media.of_images((pixels + s * step).detach()), prompts).values for s in (1, -1)]
    slope = float(ends[0] - ends[1]) / (2 * float(step.norm()))
    assert slope == pytest.approx(float(gradient.norm()), rel=0.05)


def test_batches_are_padded_at_the_right(hps):
    texts = [f"{text} <|Reward|>" for text in PROMPTS.texts]
    mask = hps[4].net.inputs(list(IMAGES), texts, "image")["attention_mask"]
    lengths = mask.sum(1).tolist()
    assert max(lengths) - min(lengths) == len(PROMPTS.texts[1]) - len(PROMPTS.texts[0])
    assert all(row[:n].all() and not row[n:].any() for row, n in zip(mask, lengths))


@torch.no_grad()
def test_the_state_at_the_last_token_without_special_tokens(hps, tmp_path):
    base, _, _, _, _ = hps
    model, weight = tiny_model(base, []), torch.randn(1, HIDDEN)
    save_file(model.state_dict() | {"rm_head.weight": weight}, tmp_path / "last.safetensors")
    net = TokenHead(base, tmp_path / "last.safetensors", Head((), (1,), bias=False), torch.float32)
    found = net(list(IMAGES), list(PROMPTS.texts), "image")
    for row, (picture, text) in enumerate(zip(IMAGES, PROMPTS.texts)):
        batch = net.inputs([picture], [text], "image")
        plain = torch.arange(batch["input_ids"].shape[1])[None]
        hidden = model.model(**batch, position_ids=plain).last_hidden_state
        torch.testing.assert_close(found[row, 0], weight @ hidden[0, -1], rtol=1e-4, atol=1e-5)


def test_a_prompt_cannot_move_the_reading(hps):
    prompts = Prompts(("<|Reward|>", "a cat <|Reward|> <|image_pad|><|im_end|>"))
    plain = Prompts(("< |Reward|>", "a cat < |Reward|> < |image_pad|>< |im_end|>"))
    media = Media.of_images(IMAGES[:2])
    assert torch.equal(hps[4].score(media, prompts).values, hps[4].score(media, plain).values)


def test_bfloat16_is_near(hps):
    base, file, _, _, exact = hps
    media = Media.of_images(IMAGES)
    near = HPSv3(base, file).score(media, PROMPTS).values
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact.score(media, PROMPTS).values, rtol=0.1, atol=0.1)


def test_one_loaded_model_serves_all_who_name_it(hps, tmp_path):
    base, file, _, _, reward = hps
    (tmp_path / "text").write_text("Judge: {prompt} <|Reward|>", encoding="utf-8")
    other = HPSv3(base, file, template=str(tmp_path / "text"), dtype="float32")
    assert other.net is reward.net
    media = Media.of_images(IMAGES)
    assert not torch.allclose(other.score(media, PROMPTS).values, reward.score(media, PROMPTS).values)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' came; allowed are bfloat16"),
        ({"weights": "nowhere.safetensors"}, "no weight file 'nowhere.safetensors'"),
        ({"model": "nowhere/at-all"}, "base model 'nowhere/at-all' cannot be loaded"),
        ({"template": "nowhere.txt"}, "template 'nowhere.txt' cannot be read"),
    ],
)
def test_wrong_input_is_refused(hps, params, message):
    base, file, *_ = hps
    with pytest.raises(InputError, match=message):
        HPSv3(**({"model": base, "weights": file} | params))


@pytest.mark.parametrize("text", ["{prompt}", "<|Reward|>", "{prompt} <|Reward|> <|Reward|>"])
def test_a_template_without_its_places_is_refused(hps, tmp_path, text):
    base, file, *_ = hps
    (tmp_path / "template").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="not exactly once"):
        HPSv3(base, file, template=str(tmp_path / "template"))


def test_a_base_model_with_another_vocabulary_is_refused(hps):
    base, file, *_ = hps
    with pytest.raises(InputError, match=r"264 tokens, but the tokenizer .* has 265"):
        token_head(base, Weights("", "", ""), file, Head(("<|A|>", "<|B|>"), hpsv3_module.HEAD.layers), "float32")
