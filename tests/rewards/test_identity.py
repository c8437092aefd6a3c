"""Is it the same subject in every frame: pools, shares of frames, boxes, OpenCV's detector on a network made here."""

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn.functional import normalize

from tests.rewards.tiny_vision import clip, dinov2, media, prompts
from visalign.rewards.check import check_reward
from visalign.rewards.dino import Dino
from visalign.rewards.identity import Identity, by_rate, pooled_similarity
from visalign.rewards.image_encoders import embed
from visalign.rewards.regions import BoxColumn, YuNet, cut
from visalign.types import InputError, Media

RED = (1.0, 0.0, 0.0)


def detector_file(path):
    """A network with YuNet's twelve outputs that finds a face where a whole cell of 32 pixels is red and not blue."""
    nodes, constants, outputs = [], [], []
    for stride in (8, 16, 32):
        nodes.append(
            helper.make_node(
                "AveragePool", ["input"], [f"cells_{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2
            )
        )
        for head, channels in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            name = f"{head}_{stride}"
            kernel, bias = np.zeros((channels, 3, 1, 1), np.float32), np.zeros(channels, np.float32)
            if channels == 1 and stride == 32:
                kernel[0, :, 0, 0] = (-1 / 255, 0, 1 / 255)  # blue, green, red
            if head == "bbox":
                bias[:2] = 0.5  # the middle of the cell; sides of exp(0) cells
            values = {"kernel": kernel, "bias": bias, "shape": np.array([1, channels, -1], np.int64)}
            constants += [numpy_helper.from_array(v, f"{k}_{name}") for k, v in values.items()]
            nodes += [
                helper.make_node("Conv", [f"cells_{stride}", f"kernel_{name}", f"bias_{name}"], [f"map_{name}"]),
                helper.make_node("Reshape", [f"map_{name}", f"shape_{name}"], [f"flat_{name}"]),
                helper.make_node("Transpose", [f"flat_{name}"], [name], perm=[0, 2, 1]),
            ]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, channels]))
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = helper.make_graph(nodes, "cells", [picture], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return str(path)


def with_cell(row=0, column=0, seed=0):
    """A grey picture (3, 64, 96) with a reddish cell of 32 pixels, not the same for all seeds."""
    picture = torch.full((3, 64, 96), 0.5)
    shade = 0.05 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed))
    cell = picture[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
    cell.copy_(torch.tensor(RED).view(3, 1, 1) + shade * torch.tensor([-1.0, 1, 1]).view(3, 1, 1))
    return picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return detector_file(tmp_path_factory.mktemp("detector") / "cells.onnx")


def test_the_pool_is_averaged_so_no_single_reference_is_enough():
    pool = torch.eye(4)[:2]
    copy, between = pool[:1], normalize(pool.sum(0, keepdim=True), dim=1)
    assert pooled_similarity(copy, pool).tolist() == pytest.approx([0.5])
    assert pooled_similarity(between, pool).tolist() == pytest.approx([0.5**0.5])


@pytest.mark.parametrize(
    ("similarities", "frames", "value", "rate"),
    [([0.8, 0.8], 2, 0.8, 1.0), ([0.8], 4, 0.2, 0.25), ([-0.4], 2, -0.4, 0.5)],
)
def test_hidden_faces_cost_their_share_and_never_pay(similarities, frames, value, rate):
    found = by_rate(torch.tensor(similarities), frames)
    assert [float(v) for v in found] == pytest.approx([value, rate])


def test_a_region_is_widened_and_kept_inside():
    image = torch.arange(100.0).view(1, 10, 10).expand(3, 10, 10)
    assert torch.equal(cut(image, (2, 4, 6, 8), 0.0), image[:, 4:8, 2:6])
    assert torch.equal(cut(image, (0, 4, 4, 8), 0.25), image[:, 3:9, 0:5])
    assert cut(image, (30, -9, 31, -8), 0.0).shape == (3, 1, 1)


def test_a_whole_frame_is_scored_as_dino_does(folder):
    reference, pictures = {"reference": media(1, 30, seed=4).images[0]}, media(2, 30)
    scores = Identity(folder).score(pictures, prompts(reference, reference))
    assert torch.allclose(scores.values, Dino(folder).score(pictures, prompts(reference, reference)).values, atol=1e-5)


def test_yunet_finds_boxes_at_any_size(detector):
    finder = YuNet(detector, "identity")
    assert finder.frame(with_cell(1, 2), {}, 0) == [(64, 32, 96, 64)]
    assert finder.frame(with_cell(0, 0)[:, :40, :50], {}, 0) == [(0, 0, 32, 32)]
    assert finder.frame(torch.full((3, 64, 64), 0.5), {}, 0) == []


def test_faces_are_compared_in_the_frames_that_show_one(folder, detector):
    reward = Identity(folder, detector=detector, margin=0.0)
    empty, reference = torch.full((3, 64, 96), 0.5), with_cell(1, 1, seed=9)
    video = Media(torch.stack([torch.stack([with_cell(0, 1, seed=1), empty, with_cell(1, 0, seed=2), empty])]))
    scores = reward.score(video, prompts({"reference": reference}))
    faces = embed(reward.encoder, [with_cell(0, 1, 1)[:, :32, 32:64], with_cell(1, 0, 2)[:, 32:, :32]])
    known = embed(reward.encoder, [reference[:, 32:, 32:64]])
    mean = float((faces @ known.T).mean())
    assert float(scores.components["similarity"]) == pytest.approx(mean, abs=1e-5)
    assert float(scores.values) == pytest.approx(mean / 2, abs=1e-5)
    assert float(scores.components["found"]) == 0.5
    assert scores.valid.tolist() == [True]


def test_a_missing_face_is_invalid_not_0(folder, detector):
    empty, face = torch.full((3, 64, 96), 0.5), with_cell()
    rows = prompts({"reference": face}, {"reference": empty}, {"reference": []}, {"reference": [empty, face]})
    scores = Identity(folder, detector=detector).score(Media.of_images(torch.stack([empty, face, face, face])), rows)
    assert scores.valid.tolist() == [False, False, False, True]
    one_of_four = Media(torch.stack([torch.stack([face, empty, empty, empty])]))
    assert not Identity(folder, detector=detector).score(one_of_four, rows.take([0])).valid.any()
    assert Identity(folder, detector=detector, least_found=0.25).score(one_of_four, rows.take([0])).valid.all()


def test_boxes_of_a_column_are_fractions_for_each_frame():
    finder, image = BoxColumn("boxes"), torch.zeros(3, 20, 40)
    assert finder.frame(image, {"boxes": [0.0, 0.5, 0.25, 1.0]}, 3) == [(0.0, 10.0, 10.0, 20.0)]
    each = {"boxes": [None, [0.0, 0.0, 1.0, 1.0]]}
    assert [finder.frame(image, each, i) for i in (0, 1)] == [[], [(0.0, 0.0, 40.0, 20.0)]]
    with pytest.raises(InputError, match="has 2 boxes"):
        finder.frame(image, each, 2)
    with pytest.raises(InputError, match="no column"):
        finder.frame(image, {}, 0)


def test_a_box_selects_what_is_compared(folder):
    picture = torch.cat([media(1, 28, seed=1).images, media(1, 28, seed=2).images], 3)
    row = {"reference": picture[0, :, :, 28:], "boxes": [0.5, 0.0, 1.0, 1.0]}
    scores = Identity(folder, boxes="boxes", margin=0.0).score(Media.of_images(picture), prompts(row))
    assert float(scores.values) == pytest.approx(1, abs=1e-5)


def test_contract_on_images_with_another_encoder(tmp_path):
    rows = prompts({"reference": media(1, seed=8).images[0]}, {"reference": list(media(2, seed=9).images)})
    check_reward(Identity(clip(tmp_path)), media(2, 36), rows)


def test_contract_on_videos_with_faces(folder, detector):
    videos = torch.stack([torch.stack([with_cell(seed=i), with_cell(1, 1, seed=i + 5)]) for i in (1, 2)])
    row = {"reference": with_cell(1, 2, seed=3)}
    check_reward(Identity(folder, detector=detector, margin=0.0), Media(videos, 8.0), prompts(row, row))


def test_a_detector_and_boxes_exclude_each_other(detector):
    with pytest.raises(InputError, match="leave one out"):
        Identity(detector=detector, boxes="boxes")


def test_a_file_that_is_no_detector_is_refused(tmp_path):
    (tmp_path / "none.onnx").write_bytes(b"not a network")
    with pytest.raises(InputError, match=cv2.__version__):
        YuNet(str(tmp_path / "none.onnx"), "identity")
    with pytest.raises(InputError, match="no weight file"):
        YuNet(str(tmp_path / "missing.onnx"), "identity")
