"""Captioned media and preference pairs from real files, and what is said when they are wrong."""

import io
import json
import struct
import zlib

import av
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from visalign import data
from visalign.data import load_media, read_captioned, read_pairs
from visalign.types import InputError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(path, color=RED, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def encoded(color):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(buffer, format="PNG")
    return buffer.getvalue()


def video(path, frames=6, rate=8):
    """Grey frames that grow brighter by 20 of 255 each."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 20 * (i + 1), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def colors(media):
    return [tuple((255 * p.mean((0, 2, 3))).round().int().tolist()) for p in media.pixels]


@pytest.fixture
def folder(tmp_path):
    """Two captioned pictures, one of them deeper."""
    picture(tmp_path / "a.png", RED)
    picture(tmp_path / "deep/b.PNG", BLUE)
    (tmp_path / "a.txt").write_text(" a red wall \n", encoding="utf-8")
    (tmp_path / "deep/b.txt").write_text("das Blaue, größer", encoding="utf-8")
    return tmp_path


def test_folder_with_captions_beside(folder):
    found = read_captioned(folder)
    assert found.texts == ("a red wall", "das Blaue, größer")
    assert found.columns == ({}, {})
    assert len(found) == 2
    media = found.load([1, 0, 1], (4, 4))
    assert media.pixels.shape == (3, 1, 3, 4, 4)
    assert media.pixels.dtype == torch.float32
    assert media.fps == 0
    assert colors(media) == [BLUE, RED, BLUE]


@pytest.mark.parametrize("column", ["text", "prompt", "caption"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_imagefolder(folder, kind, column):
    rows = [{"file_name": "deep/b.PNG", column: "blue", "id": "7"}, {"file_name": "a.png", column: "red", "id": "8"}]
    path = folder / f"metadata.{kind}"
    if kind == "csv":
        path.write_text(f"file_name,{column},id\ndeep/b.PNG,blue,7\na.png,red,8\n")
    else:
        (lines if kind == "jsonl" else table)(path, rows)
    for source in (folder, str(path)):
        found = read_captioned(source)
        assert found.texts == ("blue", "red")
        assert found.columns == ({"id": "7"}, {"id": "8"})
        assert colors(found.load([0, 1], (2, 2))) == [BLUE, RED]


def test_parquet_of_datasets_with_encoded_images(tmp_path):
    rows = [{"image": {"bytes": encoded(GREEN), "path": "x.png"}, "text": "green"}]
    found = read_captioned(table(tmp_path / "d.parquet", rows))
    assert colors(found.load([0], (4, 4))) == [GREEN]


def test_reading_decodes_nothing(folder):
    (folder / "a.png").write_bytes(b"torn")
    found = read_captioned(folder)
    assert colors(found.load([1], (4, 4))) == [BLUE]
    with pytest.raises(InputError, match=r"a\.png' is not a whole image"):
        found.load([0], (4, 4))


def test_pictures_cover_the_size_and_are_cropped_in_the_middle(tmp_path):
    image = Image.new("RGB", (12, 4), RED)
    image.paste(GREEN, (4, 0, 8, 4))
    image.save(tmp_path / "wide.png")
    media = load_media([tmp_path / "wide.png"], (8, 8))
    assert media.pixels.shape == (1, 1, 3, 8, 8)
    assert colors(load_media([tmp_path / "wide.png"], (4, 4))) == [GREEN]


@pytest.mark.parametrize(
    ("mode", "color", "seen"), [("L", 128, (128,) * 3), ("RGBA", (*BLUE, 255), BLUE), ("P", 0, None)]
)
def test_pictures_of_other_modes_become_rgb(tmp_path, mode, color, seen):
    Image.new(mode, (4, 4), color).save(tmp_path / "p.png")
    media = load_media([tmp_path / "p.png"], (4, 4))
    assert media.pixels.shape == (1, 1, 3, 4, 4)
    assert seen is None or colors(media) == [seen]


def test_pictures_of_16_bits_are_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 30_000, np.uint16)).save(tmp_path / "p.png")
    assert "p.png' has more than 8 bits a channel" in refused(load_media, [tmp_path / "p.png"], (4, 4))


def test_pictures_are_turned_as_the_camera_says(tmp_path):
    image = Image.new("RGB", (8, 4), RED)
    image.paste(BLUE, (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the right side of the stored picture is its top
    image.save(tmp_path / "p.png", exif=exif)
    pixels = load_media([tmp_path / "p.png"], (8, 4)).images[0]
    assert pixels[2, 0].mean() > 0.9
    assert pixels[0, -1].mean() > 0.9


def test_videos(tmp_path):
    video(tmp_path / "v.mp4")
    (tmp_path / "v.txt").write_text("it grows light")
    media = read_captioned(tmp_path).load([0, 0], (8, 8), frames=3)
    assert media.pixels.shape == (2, 3, 3, 8, 8)
    assert media.fps == 8
    torch.testing.assert_close(255 * media.pixels[0].mean((1, 2, 3)), torch.tensor([20.0, 40.0, 60.0]), rtol=0, atol=4)


def test_one_frame_of_a_video_is_an_image(tmp_path):
    media = load_media([video(tmp_path / "v.mp4"), picture(tmp_path / "p.png")], (8, 8))
    assert media.pixels.shape == (2, 1, 3, 8, 8)
    assert media.fps == 0


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_pairs(folder, kind):
    rows = [{"prompt": "blue", "chosen": "deep/b.PNG", "rejected": "a.png", "judge": "me"}]
    path = folder / f"pairs.{kind}"
    if kind == "csv":
        path.write_text("prompt,chosen,rejected,judge\nblue,deep/b.PNG,a.png,me\n")
    else:
        (lines if kind == "jsonl" else table)(path, rows)
    found = read_pairs(str(path))
    assert found.texts == ("blue",)
    assert found.columns == ({"judge": "me"},)
    assert len(found) == 1
    assert colors(found.load([0, 0], [True, False], (4, 4))) == [BLUE, RED]


def pick(label, **more):
    return {"caption": "a wall", "jpg_0": encoded(RED), "jpg_1": encoded(BLUE), "label_0": label, **more}


def test_pick_a_pic(tmp_path):
    rows = [pick(0.0, label_1=1.0, uid="x"), pick(0.5, label_1=0.5, uid="y"), pick(1.0, label_1=0.0, uid="z")]
    found = read_pairs(table(tmp_path / "pick.parquet", rows))
    assert found.texts == ("a wall", "a wall")
    assert found.columns == ({"uid": "x"}, {"uid": "z"})
    assert colors(found.load([0, 1], [True, True], (4, 4))) == [BLUE, RED]
    assert colors(found.load([0, 1], [False, False], (4, 4))) == [RED, BLUE]


@pytest.mark.parametrize("label", [1, "1", 1.0, "1.0"])
def test_pick_a_pic_with_paths(folder, label):
    row = {"caption": "a wall", "jpg_0": "a.png", "jpg_1": "deep/b.PNG", "label_0": label}
    found = read_pairs(lines(folder / "pick.jsonl", [row]))
    assert (found.chosen, found.rejected) == ((folder / "a.png",), (folder / "deep/b.PNG",))


def refused(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


def test_wrong_folders(folder, tmp_path_factory):
    assert "holds no media; give a folder with .png" in refused(read_captioned, tmp_path_factory.mktemp("empty"))
    assert "nowhere' does not exist" in refused(read_captioned, folder / "nowhere")
    (folder / "a.txt").write_text(" \n")
    assert "a.txt' is empty; write the caption of 'a.png' into it" in refused(read_captioned, folder)
    (folder / "a.txt").unlink()
    assert "a.png' has no caption; write it into 'a.txt' beside it, or add metadata.jsonl" in refused(
        read_captioned, folder
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file_name": "b.png", "text": "x"}, "metadata.jsonl', row 1: 'file_name' is 'b.png', but"),
        ({"file_name": "../a.png", "text": "x"}, "is '../a.png', outside of"),
        ({"file_name": "deep/../a.png", "text": "x"}, "is 'deep/../a.png', outside of"),
        ({"file_name": "/etc/hostname", "text": "x"}, "is '/etc/hostname', outside of"),
        ({"file_name": "", "text": "x"}, "row 1: 'file_name' is ''; give a file name or the bytes of an encoded image"),
        ({"file_name": 3, "text": "x"}, "row 1: 'file_name' is 3; give a file name"),
        ({"file_name": "deep", "text": "x"}, "does not exist"),
        ({"path": "a.png", "text": "x"}, "has no column file_name or image or video; its columns are path, text."),
        (
            {"file_name": "a.png", "words": "x"},
            "has no column prompt or text or caption; its columns are file_name, words",
        ),
    ],
)
def test_wrong_rows(folder, row, message):
    lines(folder / "metadata.jsonl", [row])
    assert message in refused(read_captioned, folder)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "pairs.jsonl' is empty"),
        ([{"prompt": "x", "rejected": "a.png"}], "has no column chosen; its columns are prompt, rejected. Rename"),
        ([{"prompt": "x", "chosen": "a.png"}], "has no column rejected"),
        ([{"prompt": "x", "chosen": "a.png", "rejected": None}], "row 1: 'rejected' is None; give a file name"),
        ([{"caption": "x", "jpg_0": "a.png", "jpg_1": "a.png", "label_0": 0.5}], "holds only ties (label_0 is 0.5"),
        (
            [{"caption": "x", "jpg_0": "a.png", "jpg_1": "a.png", "label_0": 2}],
            "row 1: label_0 is 2; write 1, 0, or 0.5",
        ),
        ([{"caption": "x", "jpg_0": "a.png", "jpg_1": "a.png"}], "row 1: label_0 is None; write 1"),
        ([{"caption": "x", "jpg_0": "a.png", "label_0": 0}], "row 1: 'chosen' is None; give a file name"),
    ],
)
def test_wrong_pairs(folder, rows, message):
    assert message in refused(read_pairs, lines(folder / "pairs.jsonl", rows))


def bomb(width, height):
    """A PNG that says how large it is and holds nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_100, 10_000, 50_000])
def test_decompression_bombs_are_not_decoded(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(bomb(side, side))
    message = "bomb.png' has more than 64 million pixels and is not decoded; make it smaller"
    assert message in refused(load_media, [tmp_path / "bomb.png"], (8, 8))
    assert "an encoded image of " in refused(load_media, [bomb(side, side)], (8, 8))


def test_large_videos_are_not_decoded(tmp_path, monkeypatch):
    path = video(tmp_path / "v.mp4")
    monkeypatch.setattr(data, "MAX_PIXELS", 500)
    assert "v.mp4' has more than 0 million pixels" in refused(load_media, [path], (8, 8), 2)


@pytest.mark.parametrize("content", [b"", b"not an image", encoded(RED)[:40], b"GIF89a"])
def test_torn_images_are_named(tmp_path, content):
    (tmp_path / "torn.png").write_bytes(content)
    assert "torn.png' is not a whole image" in refused(load_media, [tmp_path / "torn.png"], (8, 8))


@pytest.mark.parametrize("content", [b"", b"not a video at all"])
def test_torn_videos_are_named(tmp_path, content):
    (tmp_path / "torn.mp4").write_bytes(content)
    assert "torn.mp4' is not a whole video" in refused(load_media, [tmp_path / "torn.mp4"], (8, 8), 2)


def test_wrong_numbers_of_frames(tmp_path):
    path = video(tmp_path / "v.mp4", frames=4)
    assert "v.mp4' has 4 frames, but 5 were asked for" in refused(load_media, [path], (8, 8), 5)
    still = picture(tmp_path / "p.png")
    assert "p.png' is an image, but 2 frames were asked for" in refused(load_media, [still], (8, 8), 2)


def test_a_batch_has_one_rate(tmp_path):
    pair = [video(tmp_path / "a.mp4", rate=8), video(tmp_path / "b.mp4", rate=12)]
    message = refused(load_media, pair, (8, 8), 2)
    assert "a.mp4' has 8 frames a second and " in message
    assert "b.mp4' has 12; a batch has one rate" in message


def test_a_file_that_vanished_is_named(folder):
    found = read_captioned(folder)
    (folder / "a.png").unlink()
    assert "a.png' does not exist" in refused(found.load, [0], (4, 4))
