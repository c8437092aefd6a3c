"""CLIPScore on real classes of both libraries, against the libraries' own forward passes."""

import gc
import weakref

import pytest
import torch

from tests.rewards.tiny_encoders import clip_folder, images, open_clip_architecture, open_clip_folder, siglip_folder
from visalign.rewards.check import check_reward
from visalign.rewards.clip import Clip, cosines
from visalign.rewards.encoders import dual_encoder, preprocess_of, with_file
from visalign.rewards.pickscore import PickScore
from visalign.rewards.pil import to_pil
from visalign.types import InputError, Media, Prompts

TEXTS = ("a red circle", "two blue squares and a green circle", "a cat.")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {
        "clip": clip_folder(root / "clip"),
        "siglip": siglip_folder(root / "siglip"),
        "open_clip": open_clip_folder(root / "open_clip"),
    }


def transformers_logits(folder, pixels, texts, **tokens):
    """The model's own logits of matching pairs, from files as its processor reads them."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(list(texts), return_tensors="pt", truncation=True, **tokens)
    if "siglip" in str(folder):
        inputs.pop("attention_mask")
    ready = AutoImageProcessor.from_pretrained(folder)(to_pil(pixels), return_tensors="pt").pixel_values
    with torch.no_grad():
        found = model(pixel_values=ready, **inputs)
    return model, found.logits_per_image.diagonal()


def test_cosines_are_row_by_row():
    a, b = torch.nn.functional.normalize(torch.randn(2, 5, 7), dim=-1)
    assert torch.allclose(cosines(a, b), (a @ b.T).diagonal(), atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (48, 40)])
def test_clip_is_the_cosine_of_transformers(folders, size):
    pixels = images(3, *size)
    model, logits = transformers_logits(folders["clip"], pixels, TEXTS, padding=True)
    scores = Clip(str(folders["clip"])).score(Media.of_images(pixels), Prompts(TEXTS))
    exact = size == (32, 32)
    assert torch.allclose(scores.values, logits / model.logit_scale.exp(), atol=1e-5 if exact else 5e-3)
    assert float(scores.values.std()) > 0.02


def test_siglip_pads_to_its_length_and_attends_to_padding(folders):
    pixels = images(3, 32, 32)
    model, logits = transformers_logits(folders["siglip"], pixels, TEXTS, padding="max_length", max_length=16)
    scores = Clip(str(folders["siglip"])).score(Media.of_images(pixels), Prompts(TEXTS))
    expected = (logits - model.logit_bias) / model.logit_scale.exp()
    assert torch.allclose(scores.values, expected, atol=1e-5)
    _, unpadded = transformers_logits(folders["siglip"], pixels, TEXTS, padding=True)
    assert not torch.allclose(unpadded, logits, atol=1e-3)


def test_probability_is_siglips_sigmoid_and_refused_without_its_loss(folders):
    pixels = images(3, 32, 32)
    _, logits = transformers_logits(folders["siglip"], pixels, TEXTS, padding="max_length", max_length=16)
    scores = Clip(str(folders["siglip"]), probability=True).score(Media.of_images(pixels), Prompts(TEXTS))
    assert torch.allclose(scores.values, logits.sigmoid(), atol=1e-5)
    with pytest.raises(InputError, match="sigmoid loss"):
        Clip(str(folders["clip"]), probability=True)


def test_open_clip_folders_score_as_open_clip_does(folders):
    import open_clip

    name = f"local-dir:{folders['open_clip']}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    pixels = images(3, 32, 32)
    ready = torch.stack([transform(image) for image in to_pil(pixels)])
    with torch.no_grad():
        image = model.eval().encode_image(ready, normalize=True)
        text = model.encode_text(open_clip.get_tokenizer(name)(list(TEXTS)), normalize=True)
    scores = Clip(str(folders["open_clip"])).score(Media.of_images(pixels), Prompts(TEXTS))
    assert torch.allclose(scores.values, (image * text).sum(-1), atol=1e-5)
    assert float(scores.values.std()) > 0.02


@pytest.mark.parametrize(("mode", "fit"), [("shortest", "crop"), ("longest", "pad"), ("squash", "squash")])
def test_open_clip_folders_say_how_images_become_square(tmp_path, mode, fit):
    folder = open_clip_folder(tmp_path / mode, resize_mode=mode, fill_color=51, interpolation="bilinear")
    ready = dual_encoder(str(folder)).preprocess
    assert (ready.size, ready.fit, ready.interpolation, ready.mean) == (32, fit, "bilinear", (0.5, 0.5, 0.5))
    assert ready.fill == pytest.approx((0.2, 0.2, 0.2))


def test_bilinear_processors_are_known(tmp_path):
    assert dual_encoder(str(siglip_folder(tmp_path / "siglip2", resample=2))).preprocess.interpolation == "bilinear"


@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip"])
def test_contract(folders, kind):
    for reward in (Clip(str(folders[kind])), PickScore(str(folders[kind]))):
        check_reward(reward, Media.of_images(images(3)), Prompts(TEXTS))


def test_prepared_media_score_the_same(folders):
    reward, media = Clip(str(folders["clip"])), Media.of_images(images(3, 70, 41))
    prepared = reward.prepare(media)
    assert prepared.pixels.shape == (3, 1, 3, 32, 32)
    assert torch.equal(reward.score(prepared, Prompts(TEXTS)).values, reward.score(media, Prompts(TEXTS)).values)


def test_pickscore_is_the_scaled_cosine(folders):
    media, prompts, name = Media.of_images(images(3)), Prompts(TEXTS), str(folders["clip"])
    ratio = PickScore(name).score(media, prompts).values / Clip(name).score(media, prompts).values
    assert torch.allclose(ratio, torch.full((3,), 3.0).exp(), rtol=1e-4)


def test_one_loaded_copy_serves_all_who_hold_it_and_goes_with_them(tmp_path):
    name = str(clip_folder(tmp_path / "clip"))
    first, second = Clip(name), PickScore(name)
    assert first.encoder is second.encoder
    held = weakref.ref(first.encoder)
    del first
    assert held() is second.encoder
    del second
    gc.collect()
    assert held() is None


def test_each_text_is_encoded_once(folders):
    encoder = dual_encoder(str(folders["clip"]))
    first = encoder.texts(("a", "b", "a"), CPU)
    assert torch.equal(first[0], first[2])
    encoder.module.text_projection.weight.data.neg_()
    remembered = encoder.texts(("b",), CPU)
    encoder.module.text_projection.weight.data.neg_()
    assert torch.equal(remembered[0], first[1])


def test_a_text_does_not_depend_on_its_neighbours(folders):
    for folder in folders.values():
        encoder = dual_encoder(str(folder))
        encoder._texts.clear()
        alone = encoder.texts(("a red circle",), CPU)
        encoder._texts.clear()
        among = encoder.texts(("a green square and a red circle and a blue square", "a red circle"), CPU)
        assert torch.allclose(alone[0], among[1], atol=1e-6)


def test_long_texts_are_cut_off(folders):
    for folder in folders.values():
        assert bool(dual_encoder(str(folder)).texts(("a red circle and " * 200,), CPU).isfinite().all())


def test_weight_files_stand_for_tags(tmp_path):
    from tests.rewards.tiny_encoders import open_clip_model

    model = open_clip_model(open_clip_architecture(tmp_path, "tiny-by-file"), seed=5)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    encoder = dual_encoder(f"open_clip:tiny-by-file/{tmp_path / 'weights.pt'}")
    assert torch.equal(encoder.module.visual.proj, model.visual.proj)
    assert encoder.logit_scale == pytest.approx(20.0855, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such-encoder-anywhere", "cannot be loaded"),
        ("open_clip:ViT-H-14", "has no weights"),
        ("open_clip:no-such-net/openai", "cannot be loaded"),
        ("open_clip:ViT-B-32/no_such_tag", "cannot be loaded"),
        ("shapes/nothing", "unknown shapes judge"),
    ],
)
def test_encoders_that_cannot_be_loaded_say_so(name, message):
    with pytest.raises(InputError, match=message):
        dual_encoder(name)


def test_a_folder_without_weights_is_not_filled_with_noise(tmp_path):
    folder = open_clip_folder(tmp_path / "empty")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match="could not be loaded"):
        dual_encoder(str(folder))


def test_a_model_of_text_alone_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="BertModel, no encoder of text and images"):
        dual_encoder(str(tmp_path))


def test_processors_that_resize_otherwise_are_refused():
    from transformers import CLIPImageProcessor

    with pytest.raises(InputError, match="crops to 224"):
        preprocess_of(CLIPImageProcessor(size={"shortest_edge": 256}))
    with pytest.raises(InputError, match="resample 1"):
        preprocess_of(CLIPImageProcessor(resample=1))


def test_weights_for_a_whole_model_are_refused(folders):
    from visalign.rewards.hps import V21

    assert with_file(str(folders["clip"]), V21, None) == str(folders["clip"])
    with pytest.raises(InputError, match="weights of its own"):
        with_file(str(folders["clip"]), V21, "HPS.pt")
    with pytest.raises(InputError, match="no weight file"):
        with_file("open_clip:ViT-H-14", V21, "missing.pt")
