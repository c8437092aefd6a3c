"""What has to be spelt, how far a text is from it, and RapidOCR's own models on drawn words."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from visalign.rewards.check import check_reward
from visalign.rewards.ocr import OCR, levenshtein, likeness, plain, spelling, targets
from visalign.types import InputError, Media, Prompts


def drawn(*texts):
    pictures = []
    for text in texts:
        image = Image.new("RGB", (192, 160), "white")
        ImageDraw.Draw(image).text((12, 50), text, font=ImageFont.load_default(size=44), fill="black")
        pictures.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)
    return Media.of_images(torch.stack(pictures))


@pytest.fixture(scope="module")
def reward():
    return OCR()


@pytest.mark.parametrize(
    ("prompt", "columns", "wanted"),
    [
        ('a sign that says "Open Now"', {}, ("opennow",)),
        ("a sign that says “Open”", {}, ("open",)),
        ('"Yes" above “No”', {}, ("yes", "no")),
        ('a sign "Open"', {"target_text": "Closed"}, ("closed",)),
        ("a sign", {"target_text": ["Left", "Right"]}, ("left", "right")),
        ('a sign "Open"', {"target_text": None}, ("open",)),
        ("a sign without words", {}, ()),
        ('a sign "" and " "', {}, ()),
    ],
)
def test_targets_are_the_column_or_all_quoted_spans(prompt, columns, wanted):
    assert targets(prompt, columns) == wanted


@pytest.mark.parametrize(
    ("first", "second", "steps"), [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)]
)
def test_levenshtein_counts_edits_in_both_directions(first, second, steps):
    assert levenshtein(first, second) == levenshtein(second, first) == steps


def test_likeness_is_flow_grpos_number():
    for found in ("open", "xxopenxx", "opan", "pen", "", "entirelydifferent"):
        distance = 0 if "open" in found else min(levenshtein(found, "open"), 4)
        assert likeness(found, "open") == 1 - distance / 4


def test_width_case_and_spaces_do_not_matter():
    assert plain("Ｈéllo  World") == plain("HÉLLO WORLD")


def test_each_span_may_stand_on_its_own_line_in_any_order():
    assert spelling(["no", "yes"], ["yes", "no"]) == 1
    assert spelling(["opan", "closed"], ["open", "closed"]) == pytest.approx((3 + 6) / 10)


def test_a_target_may_be_broken_over_lines():
    assert spelling(["good", "morning"], ["goodmorning"]) == 1


def test_repeating_the_target_costs_only_with_the_penalty():
    lines = ["stop"] * 3
    assert spelling(lines, ["stop"]) == 1
    assert spelling(lines, ["stop"], over_length=0.25) == 0.5
    assert spelling(lines, ["stop"], over_length=1) == 0


def test_rapidocr_reads_with_the_models_in_its_package(reward):
    asked = ('a sign "Hello"', 'a sign "Jello"', 'a sign "World"', 'a sign "Hello"', "a sign")
    scores = reward.score(drawn("HELLO", "HELLO", "HELLO", "", "HELLO"), Prompts(asked))
    assert scores.values[:2].tolist() == pytest.approx([1, 0.8])
    assert float(scores.values[2]) < 0.5
    assert float(scores.values[3]) == 0
    assert scores.valid.tolist() == [True] * 4 + [False]


def test_contract(reward):
    check_reward(reward, drawn("OPEN", "SHUT"), Prompts(('"open"', '"shoot"')))


def test_a_penalty_below_0_is_refused():
    with pytest.raises(InputError, match="over_length"):
        OCR(over_length=-1)


def test_a_missing_configuration_is_refused():
    with pytest.raises(InputError, match="no RapidOCR configuration"):
        OCR("nowhere.yaml")
