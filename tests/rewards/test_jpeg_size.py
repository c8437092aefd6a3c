"""File sizes against a direct use of the encoder."""

import io

import pytest
import torch
from PIL import Image

from visalign.rewards.jpeg_size import JpegSize
from visalign.rewards.pil import to_pil
from visalign.types import InputError, Media, Prompts

PROMPTS = Prompts(("", "", ""))


def media(size=(24, 40)):
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 3, *size, generator=g)
    return Media.of_images(noise * torch.tensor([0.0, 0.3, 1.0])[:, None, None, None])


def encoded(image, quality):
    """DDPO's own lines: round to uint8, save, count."""
    array = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="JPEG", quality=quality)
    return len(buffer.getvalue())


@pytest.mark.parametrize("quality", [95, 50])
def test_kilobytes(quality):
    expected = torch.tensor([encoded(image, quality) / 1000 for image in media().images])
    compress = JpegSize(quality=quality).score(media(), PROMPTS).values
    incompress = JpegSize("incompress", quality=quality).score(media(), PROMPTS).values
    torch.testing.assert_close(compress, -expected)
    torch.testing.assert_close(incompress, expected)
    assert compress.argsort().tolist() == [2, 1, 0]


def test_bits_per_pixel():
    expected = torch.tensor([8 * encoded(image, 95) / (24 * 40) for image in media().images])
    values = JpegSize("incompress", unit="bits_per_pixel").score(media(), PROMPTS).values
    torch.testing.assert_close(values, expected)


def test_range_follows_the_direction():
    assert JpegSize().spec.range == (None, 0.0)
    assert JpegSize("incompress").spec.range == (0.0, None)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"direction": "smaller"}, "takes direction: compress | incompress and unit: kilobytes | bits_per_pixel, but"),
        ({"unit": "kB"}, "'compress' and 'kB' came"),
        ({"quality": 0}, "a quality from 1 to 95, but 0 came"),
        ({"quality": 100}, "a quality from 1 to 95, but 100 came"),
    ],
)
def test_wrong_params(params, message):
    with pytest.raises(InputError) as caught:
        JpegSize(**params)
    assert message in str(caught.value)


def test_to_pil_rounds_and_clamps():
    pixels = torch.tensor([-0.1, 0.4 / 255, 0.6 / 255, 1.2]).expand(1, 3, 1, 4)
    image = to_pil(pixels)[0]
    assert image.size == (4, 1)
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 0, 1, 255]
