"""GenEval's rules on boxes made by hand, and the detectors behind them as real classes at tiny size."""

import pytest
import torch
from transformers import Owlv2Config, Owlv2ForObjectDetection

from tests.rewards.tiny_vision import clip, dinov2, grounding_dino, media, owlv2, prompts
from visalign.rewards.check import check_reward
from visalign.rewards.detectors import LEAST_SCORE, Detector
from visalign.rewards.geneval import COLOURS, TEMPLATES, GenEval
from visalign.rewards.geneval_rules import Detected, credit_terms, iou, kept, relations, strict_and_dense
from visalign.types import InputError, Prompts


def at(x, y, side=2.0, score=0.95, color=""):
    return Detected((x - side / 2, y - side / 2, x + side / 2, y + side / 2), score, color)


def clause(name, count=1, **rest):
    return {"class": name, "count": count, **rest}


def judge(found, *include, exclude=()):
    return strict_and_dense(credit_terms(found, {"include": include, "exclude": exclude}))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return owlv2(folder / "owl"), clip(folder / "clip")


@pytest.mark.parametrize(
    ("x", "y", "relation"),
    [
        (-10, 0, {"left of"}),
        (10, 1, {"right of"}),
        (0, -10, {"above"}),
        (1, 10, {"below"}),
        (-10, -10, {"left of", "above"}),
        (0.3, 0.3, set()),
    ],
)
def test_relations_are_read_from_centres(x, y, relation):
    assert relations(at(x, y), at(0, 0)) == relation


def test_large_boxes_need_a_larger_offset():
    # offset 5, sides 20 + 20: 0.1 · 40 = 4 is taken off, 1 / 5 < 0.5
    assert relations(at(5, 0, side=20), at(0, 0, side=20)) == set()
    # offset 9: (9 − 4) / 9 > 0.5
    assert relations(at(9, 0, side=20), at(0, 0, side=20)) == {"right of"}


def test_the_angle_is_measured_against_the_whole_offset():
    # (8, 8): (8 − 0.4) / 11.3 = 0.67 on both axes; (8, 3): 0.89 and 0.30
    assert relations(at(8, 3), at(0, 0)) == {"right of"}


def test_counting_asks_for_more_confidence():
    found = [at(0, 0, score=s) for s in (0.95, 0.6, 0.2)]
    assert [d.score for d in kept(found, "two_object")] == [0.95, 0.6]
    assert [d.score for d in kept(found, "counting")] == [0.95]


def test_duplicates_are_dropped_below_an_overlap_of_1_and_the_surest_stays():
    found = [at(0, 0, score=0.5), at(0.1, 0, score=0.9), at(8, 0, score=0.7)]
    assert [d.score for d in kept(found, "colors", overlap=0.5)] == [0.9, 0.7]
    assert [d.score for d in kept(found, "colors")] == [0.9, 0.7, 0.5]


def test_sixteen_objects_are_kept():
    assert len(kept([at(3 * i, 0) for i in range(30)], "counting")) == 16


def test_overlap_of_boxes():
    assert iou(at(0, 0), at(0, 0)) == 1
    assert iou(at(0, 0), at(5, 0)) == 0
    assert iou(at(0, 0), at(1, 0)) == pytest.approx(1 / 3)


def test_counts_have_to_be_exact():
    cats = {"cat": [at(4 * i, 0) for i in range(3)]}
    assert judge(cats, clause("cat", 3)) == (1.0, 1.0)
    assert judge(cats, clause("cat", 2)) == (0.0, 0.5)
    assert judge(cats, clause("cat", 4)) == (0.0, 0.75)


def test_too_many_objects_cost_no_more_than_everything():
    assert judge({"cat": [at(4 * i, 0) for i in range(9)]}, clause("cat", 2)) == (0.0, 0.0)


def test_colours_are_counted_only_where_the_number_is_right():
    apples = {"apple": [at(0, 0, color="red"), at(5, 0, color="green")]}
    assert judge(apples, clause("apple", 2, color="red")) == (0.0, 0.75)
    assert judge(apples, clause("apple", 1, color="red")) == (0.0, 0.0)


def test_a_right_position_adds_one_credit_and_a_wrong_one_adds_none():
    found = {"cat": [at(0, 0)], "dog": [at(10, 0)]}
    right = clause("dog", position=["right of", 0])
    wrong = clause("dog", position=["left of", 0])
    assert credit_terms(found, {"include": [clause("cat"), right]}) == [1.0, 1.0, 1.0]
    assert credit_terms(found, {"include": [clause("cat"), wrong]}) == [1.0, 1.0, 0.0]


def test_a_position_to_something_that_is_missing_earns_nothing():
    found = {"cat": [], "dog": [at(10, 0)]}
    assert judge(found, clause("cat"), clause("dog", position=["left of", 0])) == (0.0, pytest.approx(1 / 3))


def test_every_object_has_to_stand_right():
    found = {"cat": [at(0, 0)], "dog": [at(10, 0), at(-10, 0)]}
    assert judge(found, clause("cat"), clause("dog", 2, position=["right of", 0])) == (0.0, pytest.approx(2 / 3))


def test_two_clauses_of_one_class_share_its_objects():
    found = {"cup": [at(0, 0, color="red"), at(5, 0, color="blue")]}
    assert judge(found, clause("cup", color="red"), clause("cup", color="blue")) == (1.0, 1.0)
    assert judge(found, clause("cup", color="red"), clause("cup", color="green"))[0] == 0.0


def test_an_excluded_class_counts_against_the_picture():
    found = {"cat": [at(0, 0)], "dog": [at(5, 0)]}
    assert judge(found, clause("cat"), exclude=[clause("dog", 1)]) == (0.0, 0.5)
    assert judge(found, clause("cat"), exclude=[clause("dog", 2)]) == (1.0, 1.0)


def test_an_owl_gives_each_box_to_its_likeliest_class(models):
    image, names = media(1, 48).images[0], ["dog", "red cat"]
    detector = Detector(models[0])
    found = detector.find(image, names)
    inputs = detector.processor(
        text=[[f"a photo of a {n}" for n in names]], images=[(255 * image).round().byte()], return_tensors="pt"
    )
    model = Owlv2ForObjectDetection.from_pretrained(models[0]).eval()
    with torch.no_grad():
        raw = model(**inputs)
    (logits,), (boxes,) = raw.logits, raw.pred_boxes
    for index, name in enumerate(names):
        mine = (logits.argmax(1) == index) & (logits.amax(1).sigmoid() > LEAST_SCORE)
        assert [d.score for d in found[name]] == pytest.approx(logits.amax(1).sigmoid()[mine].tolist(), abs=1e-5)
        centres = [((d.box[0] + d.box[2]) / 96, (d.box[1] + d.box[3]) / 96) for d in found[name]]
        assert torch.allclose(torch.tensor(centres), boxes[mine, :2], atol=1e-4)
    assert sum(map(len, found.values())) > 0


def test_grounding_dino_answers_class_by_class(tmp_path):
    detector = Detector(grounding_dino(tmp_path))
    image = media(1, 48).images[0]
    both = detector.find(image, ["dog", "cat"])
    assert both["cat"] == detector.find(image, ["cat"])["cat"]
    assert all(0 < d.score <= 1 for d in both["dog"])


def test_a_model_that_detects_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        Detector(dinov2(tmp_path))


def test_a_colour_is_the_nearest_of_ten_described_three_ways(models):
    reward = GenEval(*models)
    image = media(1, 48).images[0]
    (seen,) = reward._colour(image, "cup", [at(20, 24, side=16)])
    crop = reward.encoder.images(image[None, :, 16:32, 12:28])
    likeness = []
    for colour in COLOURS:
        texts = reward.encoder.texts(tuple(t.format(colour=colour, name="cup") for t in TEMPLATES), crop.device)
        mean = texts.mean(0)
        likeness.append(float(crop[0] @ (mean / mean.norm())))
    assert seen.color == COLOURS[likeness.index(max(likeness))]


def test_components_mix_to_the_value_and_the_contract_holds(models):
    rows = [
        {"tag": "colors", "include": [clause("dog", 9, color="red")], "exclude": []},
        {"tag": "two_object", "include": [clause("dog"), clause("cat", position=["left of", 0])]},
        {"tag": "counting", "include": [clause("dog", 12)], "exclude": [clause("dog", 13)]},
    ]
    reward, pictures = GenEval(*models, graded=0.25), media(3, 48)
    scores = reward.score(pictures, prompts(*rows))
    mixed = 0.75 * scores.components["strict"] + 0.25 * scores.components["dense"]
    assert torch.allclose(scores.values, mixed)
    assert float(scores.components["dense"].max()) > 0
    check_reward(reward, pictures, prompts(*rows))


def test_prompts_need_the_metadata(models):
    with pytest.raises(InputError, match="tag and include"):
        GenEval(*models).score(media(1), Prompts(("a red cup",)))


def test_a_share_out_of_range_is_refused():
    with pytest.raises(InputError, match="graded"):
        GenEval(graded=2)


def test_the_published_detector_has_these_shapes():
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    with torch.device("meta"):
        model = Owlv2ForObjectDetection(
            Owlv2Config(text_config=text, vision_config={"image_size": 960, "patch_size": 16}, projection_dim=512)
        )
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert shapes["owlv2.vision_model.embeddings.position_embedding.weight"] == (3601, 768)
    assert shapes["owlv2.text_model.embeddings.position_embedding.weight"] == (16, 512)
    assert shapes["owlv2.visual_projection.weight"] == (512, 768)
    assert shapes["class_head.dense0.weight"] == (512, 768)
    assert shapes["class_head.logit_shift.weight"] == shapes["class_head.logit_scale.weight"] == (1, 768)
    assert [shapes[f"{head}.dense2.weight"][0] for head in ("box_head", "objectness_head")] == [4, 1]
