"""`shapes/mps`: the towers of open_clip under transformers' names, and the preference that is trained on them."""

import json
from dataclasses import replace

import pytest
import torch

from tests.shapes.tiny_judges import MPS, fall, ignore, pictures
from visalign.rewards.mps import MPS as Reward
from visalign.rewards.mps import look, preference, read
from visalign.shapes.judges import clip as clips
from visalign.shapes.judges import mps
from visalign.shapes.judges.preferences import Batches
from visalign.shapes.judges.towers import as_transformers
from visalign.shapes.judges.training import train_recipe
from visalign.shapes.models import build_tokenizer
from visalign.types import Media, Prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shaken_clip):
    folder = tmp_path_factory.mktemp("mps")
    train_recipe(MPS, folder, shaken_clip, resume=False, progress=ignore)
    return folder


def test_both_towers_give_the_same_embeddings_in_transformers(shaken_clip):
    clip = clips.load_clip(shaken_clip)
    theirs = as_transformers(clip).eval()
    descriptions, _, pixels = pictures(4)
    ids = clips.tokenize(build_tokenizer(), [d.caption for d in descriptions])
    with torch.no_grad():
        logits = theirs(input_ids=ids, pixel_values=clips.normalised(pixels)).logits_per_image
        images, texts = clip.encode_image(clips.normalised(pixels)), clip.encode_text(ids)
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (images, texts)]
    assert torch.allclose(logits, clip.logit_scale.exp() * unit[0] @ unit[1].T, atol=1e-4)
    assert float(logits.std()) > 0.01


def test_the_loss_is_twice_log_two_of_equal_pictures(shaken_clip):
    network, batch = mps.build_mps(MPS, shaken_clip), Batches(MPS)(0)
    one = batch.pixels[:1].expand_as(batch.pixels)
    same = replace(batch, pixels=one, spoilt=one)
    loss = mps.mps_loss(network, same, mps.condition_of(network), MPS)
    assert float(loss.detach()) == pytest.approx((1 + MPS.damaged_weight) * 0.693147, abs=1e-4)


def test_the_eyes_stay_and_the_loss_falls_on_one_batch(shaken_clip):
    network, batch = mps.build_mps(MPS, shaken_clip), Batches(MPS)(0)
    before = {k: v.clone() for k, v in network["model"].state_dict().items()}
    condition = mps.condition_of(network)
    assert fall(network, MPS, lambda: mps.mps_loss(network, batch, condition, MPS), steps=30, rate=1e-2) > 1e-3
    assert all(torch.equal(v, before[k]) for k, v in network["model"].state_dict().items())


def test_the_reward_reads_the_folder_and_was_measured_by_it(folder):
    descriptions, _, pixels = pictures(4)
    reward, prompts = Reward(str(folder)), Prompts(tuple(d.caption for d in descriptions))
    scores = reward.score(Media.of_images(pixels), prompts)
    texts, ends = read(reward.network, clips.tokenize(build_tokenizer(), list(prompts.texts)))
    images = look(reward.network, clips.normalised(pixels))
    expected = preference(reward.network, images, texts, ends, mps.condition_of(reward.network))
    assert torch.allclose(scores.values, expected, atol=1e-4)
    assert float(expected.std()) > 0
    table = json.loads((folder / "measured.json").read_text())
    assert set(table) == {"renders", "damaged renders", "samples", "renders, two of a caption"}
