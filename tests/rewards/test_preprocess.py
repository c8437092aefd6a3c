"""Tensors go through the same resizing, cropping and padding as files do in the originals' code."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.rewards.tiny_encoders import images
from visalign.rewards.pil import to_pil
from visalign.rewards.preprocess import CLIP_STD, FITS, HALF, Preprocess, crop, crop_floor, pad, resize, squash

BLACK = (0.0, 0.0, 0.0)
SHAPES = [(301, 500), (225, 224), (90, 120), (500, 160)]


def pil_shorter(image, size, half):
    short = min(image.size)
    image = image.resize([int(size * n / short) for n in image.size], Image.BICUBIC)
    left, top = (half((n - size) / 2) for n in image.size)
    return image.crop((left, top, left + size, top + size))


def pil_pad(image, size):
    image = image.resize([round(n * size / max(image.size)) for n in image.size], Image.BICUBIC)
    canvas = Image.new("RGB", (size, size))
    canvas.paste(image, tuple((size - n) // 2 for n in image.size))
    return canvas


BY_PILLOW = {
    "crop": lambda image, size: pil_shorter(image, size, round),
    "crop_floor": lambda image, size: pil_shorter(image, size, int),
    "pad": pil_pad,
    "squash": lambda image, size: image.resize((size, size), Image.BICUBIC),
}


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("fit", sorted(FITS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_within_rounding_of_pillow(fit, shape):
    pixels = images(1, *shape)
    ours = FITS[fit](pixels, 224, BLACK, "bicubic")[0]
    theirs = as_tensor(BY_PILLOW[fit](to_pil(pixels)[0], 224))
    levels = (ours - theirs).abs() * 255
    assert float(levels.mean()) < 0.32
    assert float(levels.max()) < 1.2


def test_a_large_picture_is_within_a_quarter_of_a_level():
    pixels = images(1, 1024, 1024)
    levels = (squash(pixels, 224, BLACK)[0] - as_tensor(BY_PILLOW["squash"](to_pil(pixels)[0], 224))).abs() * 255
    assert float(levels.mean()) < 0.27
    assert float(levels.max()) < 1.2


@pytest.mark.parametrize("block", [1, 35])
def test_black_and_white_edges_are_within_rounding_too(block):
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 2, (1, 3, 560 // block, 560 // block), generator=generator).float()
    pixels = tiles.repeat_interleave(block, 2).repeat_interleave(block, 3)
    levels = (squash(pixels, 224, BLACK)[0] - as_tensor(BY_PILLOW["squash"](to_pil(pixels)[0], 224))).abs() * 255
    assert float(levels.mean()) < 0.32
    assert float(levels.max()) < 1.2


@pytest.mark.parametrize("extra", range(9))
def test_the_middle_is_where_torchvision_and_transformers_cut_it(extra):
    from torchvision.transforms.functional import center_crop
    from transformers import CLIPImageProcessor

    pixels = images(1, 32 + extra, 32)
    assert torch.equal(crop(pixels, 32, BLACK), center_crop(pixels, 32))
    box = {"height": 32, "width": 32}
    plain = CLIPImageProcessor(do_resize=False, do_normalize=False, do_rescale=False, crop_size=box)
    theirs = plain(pixels, return_tensors="pt").pixel_values
    assert torch.equal(crop_floor(pixels, 32, BLACK), theirs)
    assert torch.equal(crop(pixels, 32, BLACK), theirs) == (extra % 4 != 3)


@pytest.mark.parametrize(("shape", "size"), [((49, 98), 224), ((123, 369), 224), ((187, 561), 336), ((100, 333), 224)])
def test_the_longer_side_is_rounded_down_as_in_torchvision(shape, size):
    from torchvision.transforms.functional import resize as theirs

    long = theirs(torch.zeros(3, *shape), size).shape[-1]
    left = round((long - size) / 2)
    steps = torch.linspace(0, 1, shape[1]).expand(1, 3, *shape)
    whole = resize(steps, size, long)
    assert torch.equal(crop(steps, size, BLACK), whole[..., left : left + size])


@pytest.mark.parametrize("shape", [(64, 64), (50, 77), (77, 50), (33, 32)])
def test_equal_to_the_clip_processor_of_transformers(shape):
    from transformers import CLIPImageProcessor

    pixels = images(2, *shape)
    box = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=box)
    theirs = processor(to_pil(pixels), return_tensors="pt").pixel_values
    difference = (Preprocess(32, "crop_floor")(pixels) - theirs).abs()
    assert float(difference.max()) < 1.01 / 255 / min(CLIP_STD)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("shape", [(64, 64), (50, 77), (77, 50)])
def test_equal_to_open_clip_in_its_three_modes(mode, shape):
    from open_clip.transform import image_transform

    pixels = images(1, *shape)
    theirs = image_transform(32, is_train=False, resize_mode=mode, interpolation="bicubic")(to_pil(pixels)[0])
    fit = {"shortest": "crop", "longest": "pad", "squash": "squash"}[mode]
    difference = (Preprocess(32, fit)(pixels)[0] - theirs).abs()
    assert float(difference.max()) < 1.2 / 255 / min(CLIP_STD)


@pytest.mark.parametrize(("resample", "interpolation"), [(3, "bicubic"), (2, "bilinear")])
def test_equal_to_the_siglip_processor(resample, interpolation):
    from transformers import SiglipImageProcessor

    pixels = images(2, 70, 45)
    processor = SiglipImageProcessor(size={"height": 32, "width": 32}, resample=resample)
    theirs = processor(to_pil(pixels), return_tensors="pt").pixel_values
    ours = Preprocess(32, "squash", HALF, HALF, interpolation=interpolation)(pixels)
    assert float((ours - theirs).abs().max()) < 1.01 / 255 / 0.5


@pytest.mark.parametrize("fit", sorted(FITS))
@pytest.mark.parametrize("shape", [(40, 56), (56, 40), (32, 32), (9, 31)])
def test_a_square_stays_as_it_is(fit, shape):
    ready = Preprocess(32, fit)
    square = ready.square(images(1, *shape))
    assert square.shape == (1, 3, 32, 32)
    assert torch.equal(ready.square(square), square)
    assert 0 <= float(square.min()) <= float(square.max()) <= 1


def test_padding_is_centred_and_of_the_given_colour():
    fill = (0.2, 0.4, 0.6)
    padded = pad(torch.ones(1, 3, 20, 40), 32, fill)
    bands = torch.cat([padded[..., :8, :], padded[..., 24:, :]], 2)
    assert torch.allclose(bands, torch.tensor(fill).view(1, 3, 1, 1).expand_as(bands))
    assert torch.allclose(padded[..., 8:24, :], torch.ones(1, 3, 16, 32), atol=1e-6)


def test_a_thread_of_a_picture_keeps_one_pixel():
    assert torch.equal(pad(torch.ones(1, 3, 1, 500), 32, BLACK).sum((0, 1, 3)).nonzero().flatten(), torch.tensor([15]))


@pytest.mark.parametrize("fit", ["crop", "crop_floor", "pad", "squash"])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_black_and_white_pictures_have_gradients_at_every_judged_pixel(fit, level):
    pixels = torch.full((1, 3, 45, 45), level, requires_grad=True)
    Preprocess(32, fit)(pixels).sum().backward()
    assert bool(pixels.grad.isfinite().all())
    assert float(pixels.grad.abs().min()) > 0


def test_gradients_are_those_of_the_resizing_within_range():
    pixels = images(1, 45, 38).double().requires_grad_()
    weight = torch.rand(1, 3, 32, 32, dtype=torch.double)
    inside = lambda x: (resize(0.25 + 0.5 * x, 32, 32) * weight).sum()
    (gradient,) = torch.autograd.grad(inside(pixels), pixels)
    step = 1e-3 * torch.randn(pixels.shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = inside(pixels + step) - inside(pixels - step)
    assert float(difference) == pytest.approx(2 * float((gradient * step).sum()))
