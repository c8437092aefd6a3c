"""Pictures from columns, and the rewards that compare with them; LPIPS against torchmetrics' own network."""

import open_clip
import pytest
import torch
from PIL import Image
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import get_model

from tests.rewards.tiny_encoders import clip_folder
from tests.rewards.tiny_vision import media, prompts
from visalign.rewards.check import check_reward
from visalign.rewards.lpips import LPIPS
from visalign.rewards.lpips_trunks import TRUNKS, open_convolutions
from visalign.rewards.optional import optional
from visalign.rewards.pil import to_pil
from visalign.rewards.psnr import PSNR
from visalign.rewards.references import references
from visalign.shapes import judge_path
from visalign.types import InputError, Media, Prompts

LAYOUTS = {
    "alex": {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)},
    "vgg": dict(
        zip(
            (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
            [(64, 3, 3), (64, 64, 3), (128, 64, 3), (128, 128, 3), (256, 128, 3), *[(256, 256, 3)] * 2]
            + [(512, 256, 3), *[(512, 512, 3)] * 5],
        )
    ),
}


def layout(model):
    """Names and shapes in torchvision's file, without the classifier."""
    kernels = {f"features.{i}.weight": (out, into, k, k) for i, (out, into, k) in LAYOUTS[model].items()}
    return kernels | {f"features.{i}.bias": (out,) for i, (out, _, _) in LAYOUTS[model].items()}


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory):
    """A file of AlexNet's layout, with a classifier that has to be left out."""
    torch.manual_seed(0)
    held = {name: torch.randn(shape) / shape[-1] ** 2 / 4 for name, shape in layout("alex").items()}
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(held | {"classifier.6.bias": torch.zeros(1000)}, path)
    return str(path)


def save(folder, name, pixels):
    to_pil(pixels[None])[0].save(folder / name)
    return str(folder / name)


def test_paths_tensors_and_lists_become_pictures(tmp_path):
    picture = media(1, 8).images[0]
    path = save(tmp_path, "a.png", picture)
    (one,), (two, three) = references(prompts({"reference": path}, {"reference": [picture, path]}), "reference", "dino")
    assert (one - picture).abs().max() <= 0.5 / 255 + 1e-6
    assert two is not None
    assert torch.equal(two, picture)
    assert three is one  # a file is read once


def test_an_unreadable_file_leaves_its_row_empty(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    rows = [{"reference": str(tmp_path / name)} for name in ("broken.png", "missing.png")]
    assert references(prompts(*rows), "reference", "dino") == [(), ()]


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path, "large.png", media(1, 64).images[0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert references(prompts({"reference": path}), "reference", "dino") == [()]


def test_a_rotated_photograph_is_set_upright(tmp_path):
    turned = Image.new("RGB", (8, 4))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    ((picture,),) = references(prompts({"reference": str(tmp_path / "turned.jpg")}), "reference", "dino")
    assert picture.shape == (3, 8, 4)


def test_source_falls_back_to_the_prompts_image():
    picture = media(1, 8).images[0]
    ((found,),) = references(Prompts(("make it red",), ({},), (picture,)), "source", "psnr")
    assert torch.equal(found, picture)


def test_a_missing_column_names_what_is_there():
    with pytest.raises(InputError, match=r"'reference'.*has tag"):
        references(prompts({"tag": "counting"}), "reference", "dino")


def test_the_closest_reference_counts_and_no_reference_is_invalid():
    pictures = media(2, 16)
    far = torch.zeros(3, 16, 16)
    scores = PSNR().score(pictures, prompts({"reference": [far, pictures.images[0]]}, {"reference": []}))
    assert scores.values[0] == 50
    assert scores.valid.tolist() == [True, False]


def test_a_reference_of_another_size_is_resized():
    flat = torch.full((3, 40, 24), 0.25)
    scores = PSNR().score(Media.of_images(torch.full((1, 3, 16, 16), 0.35)), prompts({"reference": flat}))
    assert float(scores.values) == pytest.approx(20, abs=1e-3)


def test_a_row_without_reference_leaves_the_others_gradients_finite():
    pixels = media(2, 16).pixels.requires_grad_()
    rows = prompts({"reference": torch.zeros(3, 16, 16)}, {"reference": []})
    (gradient,) = torch.autograd.grad(PSNR().score_with_grad(Media(pixels), rows).values.sum(), pixels)
    assert float(gradient[0].abs().max()) > 0
    assert float(gradient[1].abs().max()) == 0


@pytest.mark.parametrize("model", list(TRUNKS))
def test_the_trunk_has_torchvisions_layout(model):
    with torch.device("meta"):
        features = get_model(TRUNKS[model][0], weights=None).features
    assert {f"features.{k}": tuple(v.shape) for k, v in features.state_dict().items()} == layout(model)
    assert all(isinstance(features[tap], nn.ReLU) for tap in TRUNKS[model][2])


def test_lpips_is_torchmetrics_number(trunk_file):
    reward = LPIPS("alex", trunk_file)
    known = _LPIPS(net="alex", pnet_rand=True)
    held = torch.load(trunk_file, weights_only=True)
    known.net.load_state_dict({k: held["features." + k.partition(".")[2]] for k in known.net.state_dict()})
    images, others = media(2, 64).images, media(2, 64, seed=1).images
    scores = reward.score(Media.of_images(images), prompts(*({"reference": r} for r in others)))
    with torch.no_grad():
        assert torch.allclose(-scores.values, known(images, others, normalize=True).flatten(), rtol=1e-4)
    assert float(scores.values.max()) < 0


def test_lpips_of_equal_pictures_is_0(trunk_file):
    pictures = media(1, 64)
    same = LPIPS(weights=trunk_file).score(pictures, prompts({"reference": pictures.images[0]}))
    assert same.values.tolist() == [0.0]


def test_lpips_keeps_the_contract(trunk_file):
    row = {"reference": media(1, 64, seed=5).images[0]}
    check_reward(LPIPS(weights=trunk_file), media(2, 64), prompts(row, row))


def test_lpips_on_a_tower_is_the_sum_of_squared_chords_of_its_layers():
    images, others = media(2, 64).images, media(2, 64, seed=1).images
    visual = open_clip.create_model(f"local-dir:{judge_path('clip')}").visual.eval()

    @torch.no_grad()
    def layers(pixels):
        found = visual.forward_intermediates(2 * pixels - 1, intermediates_only=True, output_fmt="NLC")
        return [torch.nn.functional.normalize(layer, dim=-1) for layer in found["image_intermediates"]]

    pairs = list(zip(layers(images), layers(others)))
    expected = sum((2 - 2 * (one * other).sum(-1)).mean(1) for one, other in pairs)
    scores = LPIPS("shapes/clip").score(Media.of_images(images), prompts(*({"reference": r} for r in others)))
    assert len(pairs) == 6
    assert torch.allclose(-scores.values, expected, rtol=1e-4)


def test_lpips_on_a_tower_takes_open_clips_alone(tmp_path):
    clip_folder(tmp_path)
    with pytest.raises(InputError, match=r"alex \| vgg or an open_clip encoder"):
        LPIPS(str(tmp_path))


def test_another_models_weights_are_refused(trunk_file):
    with pytest.raises(InputError, match="vgg16"):
        open_convolutions("vgg", trunk_file)


def test_a_missing_weight_file_is_refused():
    with pytest.raises(InputError, match=r"alexnet-owt-7be5be79\.pth"):
        LPIPS(weights="nowhere.pth")


def test_a_missing_library_names_its_extra():
    with pytest.raises(InputError, match=r"needs no_such_library.*visalign\[cv\]"):
        optional("no_such_library", "cv", "ssim")
