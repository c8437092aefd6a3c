"""Files that come back as they were written, and whole or not at all."""

import pytest
import torch
from PIL import Image

from visalign.media_io import read_media, read_metadata, write_media
from visalign.types import InputError, Media

METADATA = {"prompt": "a «blue» star\nleft of 雪", "seed": 2**62, "model": "shapes/sd3", "lora": None, "text": "7"}


def image(height=20, width=30):
    levels = torch.randint(0, 256, (1, 1, 3, height, width), generator=torch.Generator().manual_seed(0))
    return Media(levels / 255)


def test_png_comes_back_bit_by_bit_with_its_metadata(tmp_path):
    path = write_media(tmp_path / "000", image(), METADATA)
    assert path == tmp_path / "000.png"
    assert torch.equal(read_media(path).pixels, image().pixels)
    assert read_metadata(path) == METADATA


def test_png_text_is_plain_for_other_readers(tmp_path):
    path = write_media(tmp_path / "a", image(), METADATA)
    with Image.open(path) as opened:
        assert opened.info["prompt"] == METADATA["prompt"]
        assert opened.info["seed"] == str(2**62)


def test_values_outside_the_range_are_clamped_and_grey_is_lifted(tmp_path):
    grey = Media(torch.tensor([-1.0, 0.5, 2.0]).view(1, 1, 1, 1, 3))
    pixels = read_media(write_media(tmp_path / "a", grey, {})).pixels
    assert pixels[0, 0, :, 0].T.tolist() == [[0.0] * 3, pytest.approx([128 / 255] * 3), [1.0] * 3]


@pytest.mark.parametrize("size", [(32, 48), (33, 49)])
def test_mp4_comes_back_close_with_rate_and_metadata(tmp_path, size):
    coarse = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    path = write_media(tmp_path / "clip", Media(smooth.unsqueeze(0), fps=12), METADATA)
    assert path == tmp_path / "clip.mp4"
    video = read_media(path)
    assert video.fps == 12
    assert video.pixels.shape == (1, 5, 3, 32, 48)
    assert (video.pixels[0] - smooth[:, :, :32, :48]).abs().mean() < 0.03
    assert read_metadata(path) == METADATA


def test_frames_without_a_rate_still_make_a_video(tmp_path):
    path = write_media(tmp_path / "a", Media(torch.rand(1, 3, 3, 32, 32)), {})
    assert read_media(path).pixels.shape[1] == 3


def test_only_the_named_file_appears(tmp_path):
    write_media(tmp_path / "a", image(), {})
    write_media(tmp_path / "a", image(), {"again": True})
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert read_metadata(tmp_path / "a.png") == {"again": True}


def test_one_file_holds_one_sample(tmp_path):
    with pytest.raises(InputError, match="2 came"):
        write_media(tmp_path / "a", Media(torch.rand(2, 1, 3, 8, 8)), {})


@pytest.mark.parametrize("name", ["torn.png", "torn.mp4"])
def test_a_torn_file_is_a_readable_message(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\nno more than this")
    with pytest.raises(InputError, match=f"{name}' is not a whole"):
        read_media(tmp_path / name)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_media(tmp_path / "none.png")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="ends in none of"):
        read_media(tmp_path / "notes.txt")
