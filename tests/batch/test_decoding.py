"""Decoding: pixels equal pillow's and PyAV's, and each thing that can be wrong has its reason."""

import io

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.batch.media import bomb, broken, clip, encoded, picture
from visalign.batch.decoding import decode, is_cut, kind_of, sniff
from visalign.batch.item import MAX_FILE, Item, Unscorable
from visalign.batch.sources import items
from visalign.rewards.lifting import frame_indices


def reason(item):
    try:
        decode(item, frame_indices)
    except Unscorable as error:
        return str(error)
    return ""


def test_an_image_has_pillows_pixels():
    media = decode(Item("a", data=encoded(3)), frame_indices)
    expected = torch.from_numpy(np.array(picture(3))).permute(2, 0, 1).float() / 255
    assert media.pixels.shape == (1, 1, 3, 24, 24)
    assert torch.equal(media.images[0], expected)
    assert media.fps == 0


def test_an_image_is_turned_as_its_camera_says():
    image, buffer = picture(0).crop((0, 0, 20, 10)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(buffer, "PNG", exif=exif)
    assert decode(Item("a", data=buffer.getvalue()), frame_indices).pixels.shape[-2:] == (20, 10)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_every_eight_bit_mode_becomes_rgb(mode):
    buffer = io.BytesIO()
    picture(1).convert(mode).save(buffer, "TIFF")
    expected = np.array(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    found = decode(Item("a", data=buffer.getvalue()), frame_indices).images[0]
    assert torch.equal((found * 255).byte().permute(1, 2, 0), torch.from_numpy(expected))


@pytest.mark.parametrize("whole_file", [True, False])
def test_a_video_gives_the_frames_that_are_asked_for(tmp_path, whole_file):
    data = clip(0, frames=20)
    (tmp_path / "a.mp4").write_bytes(data)
    item = Item("a.mp4", str(tmp_path / "a.mp4")) if whole_file else Item("a", data=data)
    with av.open(io.BytesIO(data)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    media = decode(item, frame_indices)
    expected = np.stack([frames[i] for i in frame_indices(20)])
    assert media.pixels.shape == (1, 8, 3, 32, 32)
    assert torch.equal((media.pixels[0] * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(expected))
    assert media.fps == 8
    assert decode(item, range).pixels.shape[1] == 20


def mkv(frames):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for seed in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.array(picture(seed, 32)), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def test_matroska_is_read_and_its_cut_end_is_seen():
    whole = mkv(24)
    assert decode(Item("a", data=whole), frame_indices).pixels.shape[1] == 8
    assert reason(Item("a", data=whole[: len(whole) // 2])).startswith("truncated: it ends after")


def test_every_bad_file_has_its_reason_and_the_good_one_none(tmp_path):
    expected = broken(tmp_path / "x")
    found = {i.name.rpartition("/")[2]: (i.error or reason(i)).partition(":")[0] for i in items([str(tmp_path / "x")])}
    assert found == expected


def test_reasons_do_not_depend_on_the_path_or_the_process(tmp_path):
    data = encoded(0, "GIF", 64)[:100]
    for name in ("a.gif", "b.gif"):
        (tmp_path / name).write_bytes(data)
    first, second = (reason(Item(n, str(tmp_path / n))) for n in ("a.gif", "b.gif"))
    assert first == second
    assert "0x" not in first
    assert str(tmp_path) not in reason(Item("c", data=clip(0)[:900]))


def test_a_bomb_is_refused_by_its_header_alone():
    for size in ((8_001, 8_000), (60_000, 60_000)):
        assert reason(Item("a", data=bomb(*size))).startswith("huge: more than 64 million pixels")


def test_a_large_file_is_refused_unread(tmp_path):
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.write(encoded(0)[:100])
        file.truncate(MAX_FILE + 1)  # sparse
    assert reason(Item(str(path), str(path))).startswith("huge")


@pytest.mark.parametrize("cut", [0.02, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_cut_image_is_never_scored(form, cut):
    data = encoded(0, form, 64)
    assert reason(Item("a", data=data[: int(len(data) * cut)])).partition(":")[0] in ("truncated", "corrupt")


def test_noise_after_a_true_beginning_never_escapes_as_another_error():
    rng = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        head = encoded(0, form)[:30]
        for _ in range(5):
            noise = Item("a", data=head + rng.integers(0, 256, 300, dtype=np.uint8).tobytes())
            assert isinstance(reason(noise), str)
    assert reason(Item("a", data=clip(0)[:40] + bytes(range(256)) * 9)).partition(":")[0] in ("corrupt", "truncated")


def test_a_kind_is_told_by_content_never_by_name(tmp_path):
    for name, kind in (("a.jpeg", "jpeg"), ("a.TIF", "tiff"), ("a.mov", "mp4")):
        data = clip(0) if kind == "mp4" else encoded(0, kind.upper())
        (tmp_path / name).write_bytes(data)
        assert kind_of(Item(name, str(tmp_path / name))) == kind
    assert sniff(clip(0)) == "mp4"
    assert sniff("größe".encode()[:3]) == "text"
    with pytest.raises(Unscorable, match=r"wrong extension: \.docx is none of"):
        kind_of(Item("a.docx", str(tmp_path / "a.mov")))
    with pytest.raises(Unscorable, match="unsupported: it is avif"):
        kind_of(Item("a", data=b"\x00\x00\x00\x20ftypavif"))


def test_a_complete_container_is_not_cut():
    assert not is_cut(Item("a", data=clip(1)), "mp4")
    assert not is_cut(Item("a", data=encoded(1, "WEBP")), "webp")
    assert is_cut(Item("a", data=clip(1)[:-1]), "mp4")


def test_a_slice_of_an_archive_that_ends_early_is_truncated(tmp_path):
    (tmp_path / "a.tar").write_bytes(encoded(0)[:50])
    with pytest.raises(Unscorable, match="truncated"):
        Item("a.tar/0.png", str(tmp_path / "a.tar"), 10, 4000).content_hash()
