"""`shapes/detector`: which patch answers for which object, and an OWL-ViT that `geneval` loads."""

import json

import pytest
import torch

from tests.shapes.tiny_judges import DETECTOR, fall, ignore, pictures
from visalign.rewards.geneval import GenEval
from visalign.shapes.judges import detector
from visalign.shapes.judges.clip import load_clip
from visalign.shapes.judges.training import train_recipe
from visalign.shapes.reading import read_objects
from visalign.shapes.scenes import SHAPES
from visalign.types import Media, Prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shaken_clip):
    folder = tmp_path_factory.mktemp("detector")
    train_recipe(DETECTOR, folder, shaken_clip, resume=False, progress=ignore)
    return folder


def perfect(found, side, count, sure=9.0):
    """Logits and boxes that say what is there."""
    logits, boxes = torch.full((count, side**2, len(SHAPES)), -sure), torch.full((count, side**2, 4), 0.5)
    for image, shape, center, extent in zip(found.image, found.shape, found.center, found.extent, strict=True):
        patch = int(center[1] * side) * side + int(center[0] * side)
        logits[image, patch, shape] = sure
        boxes[image, patch] = torch.cat([center, extent])
    return logits, boxes


def test_the_loss_is_zero_where_the_right_patches_answer_rightly():
    _, _, pixels = pictures(6)
    found = read_objects(pixels)
    logits, boxes = perfect(found, 8, len(pixels))
    assert float(detector.detection_loss(logits, boxes, found, 8, 2.0)) == pytest.approx(0.0, abs=1e-4)
    for changed in ((logits.roll(1, 1), boxes), (logits, boxes.roll(1, 1)), (-logits, boxes)):
        assert float(detector.detection_loss(*changed, found, 8, 2.0)) > 0.5


def test_the_focal_loss_is_that_of_its_paper():
    found = read_objects(pictures(2)[2])
    boxes = perfect(found, 8, 2)[1]
    even = detector.detection_loss(torch.zeros(2, 64, len(SHAPES)), boxes, found, 8, 2.0)
    entries = 2 * 64 * len(SHAPES)
    assert float(even) == pytest.approx(0.5 * 0.25 * 0.693147 * entries / len(found.image), rel=1e-4)


def test_the_text_tower_stays_and_the_loss_falls_on_one_batch(shaken_clip):
    owl, batch = detector.build_detector(DETECTOR, load_clip(shaken_clip)), detector.Batches(DETECTOR)(0)
    before = {k: v.clone() for k, v in owl.owlvit.text_model.state_dict().items()}
    queries = detector.class_queries()
    loss = lambda: detector.detector_loss(owl, batch, queries, DETECTOR)
    assert fall(owl, DETECTOR, loss, steps=40, rate=1e-2) > 0.3
    assert all(torch.equal(v, before[k]) for k, v in owl.owlvit.text_model.state_dict().items())


def test_geneval_asks_as_training_did(folder, shaken_clip):
    reward = GenEval(str(folder), colours=str(shaken_clip))
    tokens = reward.detector.processor(text=[[f"a photo of a {name}" for name in SHAPES]], return_tensors="pt")
    assert torch.equal(tokens.input_ids, detector.class_queries())
    descriptions, _, pixels = pictures(4)
    rows = tuple(d.metadata() for d in descriptions)
    scores = reward.score(Media.of_images(pixels), Prompts(tuple(d.caption for d in descriptions), rows))
    assert scores.valid.all()
    assert set(json.loads((folder / "measured.json").read_text())) == {"renders", "damaged renders", "samples"}
