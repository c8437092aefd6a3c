"""Heads on embeddings: their formula, their folders, and the rewards that read them."""

import json
from itertools import pairwise

import pytest
import torch

from tests.rewards.tiny_encoders import clip_folder, images, shake
from visalign.rewards.aesthetic import Aesthetic
from visalign.rewards.aesthetic_v25 import AestheticV25
from visalign.rewards.artifact_head import ArtifactHead
from visalign.rewards.check import check_reward
from visalign.rewards.encoders import dual_encoder
from visalign.rewards.heads import EmbeddingHead, head_of_tensors, load_head, save_head
from visalign.types import InputError, Media, Prompts

PROMPTS = Prompts(("a", "b", "c"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(clip_folder(tmp_path_factory.mktemp("encoder") / "clip"))


def folder_of(path, encoder, limits=(1.0, 10.0), widths=(24, 8, 1), activation="gelu"):
    head = shake(EmbeddingHead(encoder, widths, limits, activation), scale=2.0)
    save_head(head, path)
    return head


def sequential(widths, prefix, gaps):
    """The tensors of a Sequential of linear layers with dropout at the other places."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"{prefix}{place}.{part}": torch.randn(*shape, generator=generator) / shape[-1] ** 0.5
        for place, (a, b) in zip(gaps, pairwise(widths), strict=True)
        for part, shape in (("weight", (b, a)), ("bias", (b,)))
    }


@pytest.mark.parametrize("limits", [None, (1.0, 10.0)])
def test_a_head_is_its_layers_with_activations_between_and_a_sigmoid_at_the_end(limits):
    head = shake(EmbeddingHead("x", [6, 5, 4, 1], limits, "relu"), scale=1.0)
    x = given = torch.randn(7, 6)
    for layer in head.layers[:2]:
        x = (x @ layer.weight.T + layer.bias).clamp(min=0)
    raw = (x @ head.layers[2].weight.T + head.layers[2].bias)[:, 0]
    expected = raw if limits is None else 1 + 9 / (1 + (-raw).exp())
    assert torch.allclose(head(given), expected, atol=1e-5)


def test_without_activations_a_head_is_affine():
    head = shake(EmbeddingHead("x", [6, 5, 1]), scale=1.0)
    a, b = torch.randn(2, 3, 6)
    assert torch.allclose(head(0.3 * a + 0.7 * b), 0.3 * head(a) + 0.7 * head(b), atol=1e-5)


@pytest.mark.parametrize("limits", [None, (0.0, 1.0)])
def test_a_saved_head_is_the_head(tmp_path, limits):
    head = folder_of(tmp_path, "shapes/clip", limits)
    again = load_head(tmp_path)
    assert (again.encoder, again.widths, again.range, again.activation) == ("shapes/clip", (24, 8, 1), limits, "gelu")
    x = torch.randn(4, 24)
    assert torch.equal(again(x), head(x))
    assert not any(p.requires_grad for p in again.parameters())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "head.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [24, 9, 1]}, "layout"),
        ({"layers": "many"}, "no folder of a head"),
        ({"activation": "tanh"}, "no folder of a head"),
        ({"range": 10}, "no folder of a head"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, change, message):
    folder_of(tmp_path, "shapes/clip")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        load_head(tmp_path)


def test_files_that_are_missing_or_damaged_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"head\.safetensors"):
        load_head(tmp_path / "nowhere")
    folder_of(tmp_path, "shapes/clip")
    (tmp_path / "config.json").write_text('{"layers": [24, 8, 1], "range": null}')
    with pytest.raises(InputError, match="'encoder'"):
        load_head(tmp_path)
    folder_of(tmp_path, "shapes/clip")
    (tmp_path / "head.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(InputError, match="plain tensors"):
        load_head(tmp_path)


def test_aesthetic_reads_a_folder_in_its_range(encoder, tmp_path):
    head = folder_of(tmp_path, encoder)
    reward, media = Aesthetic(str(tmp_path)), Media.of_images(images(3))
    assert reward.spec.range == (1.0, 10.0)
    expected = head(dual_encoder(encoder).images(media.images)).detach()
    assert torch.allclose(reward.score(media, PROMPTS).values, expected)
    assert torch.equal(reward.score(media, PROMPTS).values, AestheticV25(str(tmp_path)).score(media, PROMPTS).values)
    check_reward(reward, media, PROMPTS)


def test_artifact_head_is_one_minus_the_probability(encoder, tmp_path):
    head = folder_of(tmp_path, encoder, (0.0, 1.0))
    reward, media = ArtifactHead(str(tmp_path)), Media.of_images(images(3))
    expected = 1 - head(dual_encoder(encoder).images(media.images)).detach()
    assert torch.allclose(reward.score(media, PROMPTS).values, expected)
    check_reward(reward, media, PROMPTS)


def test_artifact_head_takes_probabilities_only(encoder, tmp_path):
    folder_of(tmp_path, encoder, (1.0, 10.0))
    with pytest.raises(InputError, match=r"\(1\.0, 10\.0\)"):
        ArtifactHead(str(tmp_path))


def test_a_head_on_the_wrong_encoder_says_so(encoder, tmp_path):
    folder_of(tmp_path, encoder, widths=(23, 8, 1))
    with pytest.raises(InputError, match=r"width 23.*gives 24"):
        Aesthetic(str(tmp_path)).score(Media.of_images(images(3)), PROMPTS)


def test_a_weight_file_for_a_folder_with_a_head_is_refused(encoder, tmp_path):
    folder_of(tmp_path, encoder)
    with pytest.raises(InputError, match="head of its own"):
        Aesthetic(str(tmp_path), weights="head.pth")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "nothing"),
        ({"weight": torch.zeros(1, 4), "bias": torch.zeros(1)}, "weight, bias"),
        ({"layers.0.weight": torch.zeros(1, 4)}, r"layers\.0\.weight"),
        (sequential((4, 3, 1), "layers.", (0, 2)) | {"scale": torch.zeros(1)}, "scale"),
        (sequential((4, 3, 2), "layers.", (0, 2)), "layout"),
        (sequential((4, 3), "a.", (0,)) | sequential((5, 1), "a.", (2,)), "layout"),
    ],
)
def test_tensors_that_are_no_chain_of_linear_layers_are_refused(tensors, message):
    with pytest.raises(InputError, match=message):
        head_of_tensors(tensors, "x", "file.pth")


@pytest.mark.parametrize(("prefix", "gaps"), [("layers.", (0, 2, 7)), ("scoring_head.", (0, 2, 4)), ("", (3, 10, 11))])
def test_numbered_layers_are_read_in_the_order_of_their_numbers(prefix, gaps):
    tensors = sequential((6, 5, 4, 1), prefix, gaps)
    x = given = torch.randn(3, 6)
    for place in gaps:
        x = x @ tensors[f"{prefix}{place}.weight"].T + tensors[f"{prefix}{place}.bias"]
    shuffled = dict(sorted(tensors.items(), reverse=True))
    assert torch.allclose(head_of_tensors(shuffled, "x", "file.pth")(given), x[:, 0], atol=1e-6)


def test_the_agpl_head_is_never_fetched():
    with pytest.raises(InputError, match=r"AGPL-3\.0.*aesthetic_predictor_v2_5\.pth"):
        AestheticV25()
    with pytest.raises(InputError, match=r"AGPL-3\.0"):
        AestheticV25("shapes/clip")
