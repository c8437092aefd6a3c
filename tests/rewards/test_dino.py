"""Similarity to references and to a description by real classes at tiny size."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, normalize
from transformers import Blip2ForImageTextRetrieval, Dinov2Model

from tests.rewards.tiny_vision import blip2, clip, dinov2, dinov2_config, media, prompts
from visalign.rewards.check import check_reward
from visalign.rewards.dino import Dino
from visalign.rewards.encoders import dual_encoder
from visalign.rewards.hummingbird import Hummingbird
from visalign.rewards.image_encoders import embed_pools, image_encoder
from visalign.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD
from visalign.types import InputError, Media, Prompts


def layout(hidden, layers, tokens, patch):
    """Names and shapes of facebook/dinov2-base's model.safetensors, for any size."""
    block = {
        **{f"norm{i}.{part}": (hidden,) for i in (1, 2) for part in ("weight", "bias")},
        **{f"layer_scale{i}.lambda1": (hidden,) for i in (1, 2)},
        "mlp.fc1.weight": (4 * hidden, hidden),
        "mlp.fc1.bias": (4 * hidden,),
        "mlp.fc2.weight": (hidden, 4 * hidden),
        "mlp.fc2.bias": (hidden,),
    }
    for linear in ("attention.query", "attention.key", "attention.value", "output.dense"):
        block |= {f"attention.{linear}.weight": (hidden, hidden), f"attention.{linear}.bias": (hidden,)}
    return {
        "embeddings.cls_token": (1, 1, hidden),
        "embeddings.mask_token": (1, hidden),
        "embeddings.position_embeddings": (1, tokens, hidden),
        "embeddings.patch_embeddings.projection.weight": (hidden, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (hidden,),
        **{f"encoder.layer.{i}.{name}": shape for i in range(layers) for name, shape in block.items()},
        "layernorm.weight": (hidden,),
        "layernorm.bias": (hidden,),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return clip(tmp_path_factory.mktemp("clip"))


def test_the_base_model_has_the_published_shapes():
    with torch.device("meta"):
        model = Dinov2Model(dinov2_config(768, 12, 12, 518))
    published = layout(768, 12, 1 + (518 // 14) ** 2, 14)
    assert sorted(tuple(p.shape) for p in model.parameters()) == sorted(published.values())
    assert sum(p.numel() for p in model.parameters()) == 86_580_480


def test_a_file_of_the_published_layout_is_read_whole(folder, tmp_path):
    torch.manual_seed(1)
    held = {name: 0.1 * torch.randn(shape) for name, shape in layout(32, 2, 5, 14).items()}
    assert {name: tuple(v.shape) for name, v in load_file(f"{folder}/model.safetensors").items()} == layout(
        32, 2, 5, 14
    )
    Dinov2Model(dinov2_config()).save_pretrained(tmp_path)
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = image_encoder(str(tmp_path)).module
    assert torch.equal(loaded.layernorm.weight, held["layernorm.weight"])
    assert sorted(float(p.sum()) for p in loaded.parameters()) == sorted(float(v.sum()) for v in held.values())


def test_the_score_is_the_cosine_of_class_tokens(folder):
    picture, reference = media(1, 28).images, media(1, 28, seed=1).images
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    model = Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        first, second = (model((x - mean) / std).pooler_output for x in (picture, reference))
    scores = Dino(folder).score(Media.of_images(picture), prompts({"reference": reference[0]}))
    assert torch.allclose(scores.values, cosine_similarity(first, second), atol=1e-6)


def test_the_closest_reference_counts_and_a_copy_has_1(folder):
    pictures = media(2, 40)
    other = media(1, 40, seed=7).images[0]
    single = Dino(folder).score(pictures, prompts({"reference": other}, {"reference": other}))
    scores = Dino(folder).score(pictures, prompts({"reference": [other, pictures.images[0]]}, {"reference": [other]}))
    assert float(scores.values[0]) == pytest.approx(1, abs=1e-5)
    assert float(scores.values[1]) == pytest.approx(float(single.values[1]), abs=1e-5)


def test_a_row_without_reference_is_invalid(folder, tmp_path):
    scores = Dino(folder).score(media(2), prompts({"reference": str(tmp_path / "no.png")}, {"reference": []}))
    assert scores.valid.tolist() == [False, False]


def test_a_shared_reference_is_encoded_once(folder):
    seen = []
    encoder = image_encoder(folder)
    handle = encoder.module.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    picture = media(1).images[0]
    pools = embed_pools(encoder, [(picture,), (picture, picture), ()], torch.device("cpu"))
    handle.remove()
    assert seen == [1]
    assert [len(p) for p in pools] == [1, 2, 0]


def test_preparing_changes_no_score(folder):
    reward, row = Dino(folder), {"reference": media(1, seed=2).images[0]}
    pictures = Media(torch.rand(2, 1, 3, 40, 64))
    plain, ready = (reward.score(m, prompts(row, row)).values for m in (pictures, reward.prepare(pictures)))
    assert torch.allclose(plain, ready, atol=1e-6)


def test_any_image_encoder_serves(clip_folder, folder):
    assert image_encoder(clip_folder) is dual_encoder(clip_folder)
    first, second = Dino(folder), Dino(folder)
    assert first.encoder is second.encoder


def test_an_unknown_model_is_refused():
    with pytest.raises(InputError, match="nowhere/none"):
        Dino("nowhere/none")


@pytest.mark.parametrize("model", ["folder", "clip_folder"])
def test_contract(model, request):
    others = media(3, 40, seed=3).images
    rows = prompts({"reference": others[0]}, {"reference": [others[0], others[1]]}, {"reference": others[2]})
    check_reward(Dino(request.getfixturevalue(model)), media(3, 36), rows)


@pytest.mark.parametrize("placeholder", [None, 9])
def test_hummingbird_is_blip2s_similarity(tmp_path, placeholder):
    reward = Hummingbird(blip2(tmp_path, placeholder))
    model = Blip2ForImageTextRetrieval.from_pretrained(tmp_path).eval()
    pictures, texts = media(2, 28), ("a dog", "a red cat on a mat")
    for row, text in enumerate(texts):
        tokens = reward.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            seen = model.vision_model(reward.preprocess(pictures.images[[row]])).last_hidden_state
            visual = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=seen).last_hidden_state
            words = model.qformer(query_embeds=model.embeddings(input_ids=tokens["input_ids"]), query_length=0)
            said = model.text_projection(words.last_hidden_state[:, 0])
            known = (normalize(model.vision_projection(visual), dim=-1) @ normalize(said, dim=-1).T).max()
        alone = reward.score(pictures.take([row]), Prompts((text,))).values
        assert float(alone) == pytest.approx(float(known), abs=1e-5)


def test_hummingbird_reads_the_context_and_keeps_the_contract(tmp_path):
    reward, pictures = Hummingbird(blip2(tmp_path)), media(2, 40)
    with_context = reward.score(pictures, prompts({"context": "a dog"}, {"context": "a cat"})).values
    assert torch.allclose(with_context, reward.score(pictures, Prompts(("a dog", "a cat"))).values)
    check_reward(reward, pictures, Prompts(("a dog", "two cats on a mat")))
