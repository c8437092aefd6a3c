"""`shapes/blip`: what is trained is what `imagereward` reads back, under the checkpoint's names."""

import json

import pytest
import torch

from tests.shapes.tiny_judges import BLIP, fall, ignore, pictures
from visalign.rewards.blip import checkpoint_name, vision_name
from visalign.rewards.imagereward import MEAN, STD, ImageReward, look, rate
from visalign.rewards.preprocess import Preprocess
from visalign.shapes.judges import blip
from visalign.shapes.judges.preferences import Batches, padded, preference_loss, swapped
from visalign.shapes.judges.training import train_recipe
from visalign.types import Media, Prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shaken_clip):
    folder = tmp_path_factory.mktemp("blip")
    train_recipe(BLIP, folder, shaken_clip, resume=False, progress=ignore)
    return folder


def test_names_of_the_vision_transformer_go_both_ways():
    names = list(blip.Learner(BLIP, 16).network["vision"].state_dict())
    originals = [checkpoint_name(name) for name in names]
    assert [vision_name(name) for name in originals] == names
    assert {"cls_token", "pos_embed", "blocks.1.attn.qkv.weight", "blocks.0.norm2.bias", "norm.weight"} <= set(
        originals
    )


def test_swapping_changes_places_within_pairs():
    assert swapped(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]


def test_the_loss_is_that_of_bradley_and_terry():
    right, wrong, worse = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0])
    expected = (torch.log1p(torch.exp(torch.tensor(-1.0))) + 0.693147) / 2 + 0.5 * 0.693147
    assert float(preference_loss(right, wrong, worse, 0.5)) == pytest.approx(float(expected), abs=1e-5)


def test_the_loss_falls_on_one_batch(teacher):
    learner, batch = blip.Learner(BLIP, 16), Batches(BLIP)(0)
    assert fall(learner, BLIP, lambda: blip.blip_loss(learner, batch, teacher, BLIP), steps=30, rate=1e-3) > 0.1


def test_what_is_saved_scores_as_what_was_trained(tmp_path):
    learner, batch = blip.Learner(BLIP, 16), Batches(BLIP)(0)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        learner.half().float()
    blip.save_blip(learner.network, tmp_path)
    learner.eval()
    tokens = padded(batch.captions)
    with torch.no_grad():
        images = look(learner.network, Preprocess(BLIP.size)(batch.pixels))
        expected = (rate(learner.network, images, tokens.input_ids, tokens.attention_mask) - MEAN) / STD
    scores = ImageReward(str(tmp_path)).score(Media.of_images(batch.pixels), Prompts(batch.captions))
    assert torch.allclose(scores.values, expected, atol=1e-4)
    assert float(expected.std()) > 0


def test_the_folder_is_measured_by_the_reward(folder):
    table = json.loads((folder / "measured.json").read_text())
    assert set(table) == {"renders", "damaged renders", "samples", "renders, two of a caption"}
    _, _, pixels = pictures(2)
    assert ImageReward(str(folder)).score(Media.of_images(pixels), Prompts(("a star", "a circle"))).valid.all()
