"""PickScore, HPSv2, SRP and MPS: what they promise beyond the cosine, on real classes at tiny size."""

import pytest
import torch
from safetensors.torch import save_file

from tests.rewards.test_preprocess import pil_pad
from tests.rewards.tiny_encoders import (
    clip_config,
    clip_folder,
    images,
    open_clip_architecture,
    open_clip_folder,
    open_clip_model,
    shake,
)
from visalign.rewards.check import check_reward
from visalign.rewards.clip import Clip
from visalign.rewards.hps import HPSv2, HPSv21, RelativeScore, relative_text
from visalign.rewards.mps import MPS, condition_mask
from visalign.rewards.mps_network import CrossModel
from visalign.rewards.pickscore import PROCESSORS, PickScore
from visalign.rewards.pil import to_pil
from visalign.types import InputError, Media, Prompts

TEXTS = ("a red circle", "two blue squares and a green circle", "a cat.")
PROMPTS = Prompts(TEXTS)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(clip_folder(tmp_path_factory.mktemp("family") / "clip"))


@pytest.fixture(scope="module")
def hps_file(tmp_path_factory):
    """A checkpoint as HPSv2's, for an architecture named tiny-hps; returns (path, model)."""
    folder = tmp_path_factory.mktemp("hps")
    model = open_clip_model(open_clip_architecture(folder, "tiny-hps"), seed=3)
    torch.save({"state_dict": model.state_dict(), "epoch": 1, "name": "hps"}, folder / "HPS.pt")
    return str(folder / "HPS.pt"), model


@pytest.fixture(scope="module")
def mps(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("mps")
    from transformers import CLIPModel

    cross = shake(CrossModel(2, 24, 32, 16, 40), seed=4)
    network = torch.nn.ModuleDict({"model": shake(CLIPModel(clip_config()), seed=5), "cross_model": cross})
    save_file(network.state_dict(), folder / "model.safetensors")
    return MPS(str(folder), processor=clip)


def test_pickscore_takes_its_processor_from_the_clip_it_was_tuned_from():
    assert PROCESSORS == {"yuvalkirstain/PickScore_v1": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}


def test_hps_pads_and_takes_the_plain_cosine(hps_file):
    import open_clip

    path, model = hps_file
    pixels = images(3, 60, 36)
    transform = open_clip.image_transform(32, is_train=False)
    ready = torch.stack([transform(pil_pad(image, 32)) for image in to_pil(pixels)])
    with torch.no_grad():
        image = model.encode_image(ready, normalize=True)
        text = model.encode_text(open_clip.get_tokenizer("tiny-hps")(list(TEXTS)), normalize=True)
    for reward in (HPSv2, HPSv21):
        values = reward("open_clip:tiny-hps", path).score(Media.of_images(pixels), PROMPTS).values
        assert torch.allclose(values, (image * text).sum(-1), atol=5e-3)


def test_hps_fits_agree_on_squares_only(hps_file):
    def values(fit, *size):
        reward = HPSv21("open_clip:tiny-hps", hps_file[0], fit)
        return reward.score(Media.of_images(images(3, *size)), PROMPTS).values

    fits = ("pad", "crop", "squash")
    square, wide = ([values(fit, *size) for fit in fits] for size in ((40, 40), (30, 60)))
    assert all(torch.equal(square[0], other) for other in square[1:])
    assert not any(torch.allclose(wide[i], wide[j], atol=1e-3) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_two_versions_name_their_files():
    files = [reward.spec.weights[0].file for reward in (HPSv2, HPSv21, RelativeScore)]
    assert files == ["HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt", "HPS_v2.1_compressed.pt"]
    assert {reward.spec.weights[0].repo for reward in (HPSv2, HPSv21)} == {"xswu/HPSv2"}


def test_prepared_media_score_the_same(hps_file, mps):
    media = Media.of_images(images(3, 70, 41))
    for reward in (HPSv21("open_clip:tiny-hps", hps_file[0]), mps):
        prepared = reward.prepare(media)
        assert torch.equal(reward.score(prepared, PROMPTS).values, reward.score(media, PROMPTS).values)


def test_contract(clip, hps_file, mps, tmp_path):
    media = Media.of_images(images(3))
    tiny = str(open_clip_folder(tmp_path / "open_clip"))
    rewards = (HPSv21(tiny), HPSv2("open_clip:tiny-hps", hps_file[0]), RelativeScore(tiny), PickScore(clip), mps)
    for reward in rewards:
        check_reward(reward, media, PROMPTS)


def test_scores_follow_their_rows(clip, hps_file, mps):
    media, order = Media.of_images(images(3)), [2, 0, 1]
    for reward in (PickScore(clip), HPSv21("open_clip:tiny-hps", hps_file[0]), mps):
        values = reward.score(media, PROMPTS).values
        moved = reward.score(media.take(order), PROMPTS.take(order)).values
        assert torch.allclose(moved, values[order], atol=1e-4)


def test_the_relative_score_is_the_difference_of_two_scores(clip):
    media, k = Media.of_images(images(3)), 0.3
    relative = RelativeScore(clip, positive="good", negative="bad", strength=k).score(media, PROMPTS).values
    good, bad = (
        Clip(clip).score(media, Prompts(tuple(f"{word}. {t}" for t in TEXTS))).values for word in ("good", "bad")
    )
    assert torch.allclose(relative, (1 + k) * good - bad, atol=1e-5)


def test_the_relative_text_cancels_what_both_share():
    shared = torch.randn(2, 5)
    assert torch.allclose(relative_text(shared, shared, 0.0), torch.zeros(2, 5))


def test_the_condition_mask_is_taken_row_by_row():
    condition = torch.eye(4)[:2]
    texts = torch.tensor([[[1.0, 0, 0, 0], [0.2, 0.1, 5, 0]], [[10.0, 0, 0, 0], [0, 4.0, 0, 9]]])
    assert condition_mask(texts, condition).tolist() == [[True, False], [True, True]]
    assert condition_mask(texts[:1], condition).tolist() == [[True, False]]
    assert condition_mask(texts, condition, threshold=0.1).tolist() == [[True, True], [True, True]]


def test_mps_is_the_same_beside_a_prompt_that_the_condition_likes_more(mps):
    media = Media.of_images(images(3))
    alone = mps.score(media.take([0]), PROMPTS.take([0])).values
    for neighbour in ("light, color, clarity, tone", "z", "a red circle"):
        among = mps.score(media, Prompts((TEXTS[0], neighbour, neighbour))).values
        assert torch.allclose(among[:1], alone, atol=1e-4)


def test_mps_reads_the_prompt_and_the_picture(mps):
    media = Media.of_images(images(3))
    assert float(mps.score(media, Prompts((TEXTS[0],) * 3)).values.std()) > 0.01
    assert float(mps.score(media.take([0, 0, 0]), PROMPTS).values.std()) > 0.01


def test_mps_refuses_files_without_its_network(clip, tmp_path):
    save_file({"model.logit_scale": torch.zeros(())}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="cross_model"):
        MPS(str(tmp_path), processor=clip)
    with pytest.raises(InputError, match="no weight file"):
        MPS(weights=str(tmp_path / "missing.pth"), processor=clip)


def test_pickled_modules_are_refused(clip, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "MPS_overall_checkpoint.pth")
    with pytest.raises(InputError, match="pickles that hold code"):
        MPS(weights=str(tmp_path / "MPS_overall_checkpoint.pth"), processor=clip)
