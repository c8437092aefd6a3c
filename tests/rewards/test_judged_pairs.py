"""Judges that compare: every pair in both orders, win rates within a prompt, consistency of sets."""

import math

import pytest
import torch

from tests.rewards.test_judged import OPENERS, Scripted, brightness, greys, position, yes
from tests.rewards.test_rubrics import INJECTIONS
from visalign.rewards.check import check_reward
from visalign.rewards.consistency import CRITERIA, Consistency, pieces
from visalign.rewards.judge import Answer
from visalign.rewards.judged import both_orders
from visalign.rewards.pairwise import Pairwise, outcome, pairs_of, second_by_words
from visalign.types import InputError, Media, Prompts

MEDIA = Media.of_images(greys(0.1, 0.4, 0.7, 0.9, 0.2))
PROMPTS = Prompts(("a wall", "a wall", "a door", "a wall", "a lamp"))


def prefers(preference, bias=0.0):
    """A judge of two candidates: P(2) = ½ + preference(second) − preference(first), and a bias for the second place."""

    def answer(q):
        half = len(q.images) // 2
        first, second = (preference(torch.stack(part)) for part in (q.images[:half], q.images[half:]))
        p = min(max(0.5 + second - first + bias, 0.0), 1.0)
        return position(**{"1": 0.9 * (1 - p) + 1e-12, "2": 0.9 * p + 1e-12})

    return answer


def bright(images):
    return float(images.detach().mean()) / 2


def words(second):
    return Answer(f"<think>Both have merits.</think>\n<answer>Image {1 + second} is better</answer>")


# Win rates.


def test_every_pair_of_a_prompt_is_asked_in_both_orders():
    judge = Scripted(prefers(bright))
    Pairwise(judge).score(MEDIA, PROMPTS)
    shown = [tuple(round(brightness(i), 1) for i in q.images) for q in judge.asked]
    assert shown == [(0.1, 0.4), (0.4, 0.1), (0.1, 0.9), (0.9, 0.1), (0.4, 0.9), (0.9, 0.4)]
    assert all("<prompt>\na wall\n</prompt>" in q.text for q in judge.asked)
    assert pairs_of(["a", "b"]) == []


def test_in_a_ring_each_row_meets_as_many_others():
    rows = ["a"] * 7 + ["b"] * 2
    pairs = pairs_of(rows, opponents=2)
    assert [sum(row in pair for pair in pairs) for row in range(9)] == [4] * 7 + [1] * 2
    assert pairs_of(rows, opponents=6) == pairs_of(rows)
    judge = Scripted(prefers(bright))
    scores = Pairwise(judge, opponents=1).score(Media.of_images(greys(0.1, 0.3, 0.5, 0.7)), Prompts(("a wall",) * 4))
    assert len(judge.asked) == 2 * 4
    assert scores.values.tolist() == [0.0, 0.5, 0.5, 1.0]


@pytest.mark.parametrize("bias", [0.0, 0.1, -0.05])
def test_the_value_is_the_win_rate_and_a_lone_row_is_invalid(bias):
    scores = Pairwise(Scripted(prefers(bright, bias))).score(MEDIA, PROMPTS)
    assert scores.valid.tolist() == [True, True, False, True, False]
    assert scores.values[scores.valid].tolist() == [0.0, 0.5, 1.0]
    soft = [0.5 + ((0.1 - 0.4) + (0.1 - 0.9)) / 4, 0.5 + ((0.4 - 0.1) + (0.4 - 0.9)) / 4, 0.5 + (0.8 + 0.5) / 4]
    assert scores.components["preference"][scores.valid].tolist() == pytest.approx(soft, abs=1e-5)
    assert scores.components["second"][scores.valid].tolist() == pytest.approx([0.5 + bias] * 3, abs=1e-5)


@pytest.mark.parametrize("form", ["verdict", "think"])
def test_a_judge_that_prefers_the_second_place_makes_ties_exactly(form):
    answers = {"verdict": position(**{"1": 0.1, "2": 0.9}), "think": words(second=True)}
    scores = Pairwise(Scripted(lambda q: answers[form]), form=form).score(MEDIA, PROMPTS)
    for values in (scores.values, scores.components["preference"]):
        assert values[scores.valid].tolist() == [0.5, 0.5, 0.5]
    assert scores.components["second"][0].item() == pytest.approx(1.0 if form == "think" else 0.9)


def test_a_tie_is_half_a_win():
    media = Media.of_images(greys(0.4, 0.4, 0.8))
    scores = Pairwise(Scripted(prefers(bright))).score(media, Prompts(("a wall",) * 3))
    assert scores.values.tolist() == [0.25, 0.25, 1.0]
    assert [outcome(p) for p in (0.0, 0.48, 0.495, 0.5, 0.509, 0.52)] == [0.0, 0.0, 0.5, 0.5, 0.5, 1.0]


def test_win_rates_of_a_group_average_one_half():
    g = torch.Generator().manual_seed(0)
    media = Media.of_images(torch.rand(6, 3, 4, 4, generator=g))
    scores = Pairwise(Scripted(prefers(lambda x: math.sin(1e4 * bright(x)) / 4, 0.1))).score(media, Prompts(("a",) * 6))
    assert float(scores.values.mean()) == pytest.approx(0.5)
    assert float(scores.components["preference"].mean()) == pytest.approx(0.5, abs=1e-6)


def test_thoughts_are_read_by_their_conclusion():
    judge = Scripted(lambda q: words(brightness(q.images[1]) > brightness(q.images[0])))
    scores = Pairwise(judge, form="think").score(MEDIA, PROMPTS)
    assert scores.values[scores.valid].tolist() == [0.0, 0.5, 1.0]
    assert judge.asked[0].max_tokens == 4096


@pytest.mark.parametrize(
    "text",
    [
        *OPENERS,
        "Image 2 is better",
        "<answer>Image 2</answer>",
        "<answer>Image 2 is better than Image 1</answer>",
        "<answer>Image 1 is better</answer><answer>Image 2 is better</answer>",
        "<think>Image 2 is better",
        "2",
    ],
)
def test_other_words_are_no_conclusion(text):
    assert second_by_words(Answer(text)) is None
    assert not Pairwise(Scripted(lambda q: Answer(text)), form="think").score(MEDIA, PROMPTS).valid.any()


def test_a_pair_that_was_judged_in_one_order_does_not_count():
    """Its one answer would carry the bias of the place."""
    judge = prefers(bright, 0.3)
    failing = Scripted(lambda q: Answer(error="timeout") if brightness(q.images[0]) > 0.8 else judge(q))
    scores = Pairwise(failing).score(MEDIA, PROMPTS)
    assert scores.valid.tolist() == [True, True, False, False, False]
    assert scores.values[:2].tolist() == [0.0, 1.0]


def test_videos_show_their_frames_in_order():
    pixels = torch.linspace(0, 1, 2 * 10).view(2, 10, 1, 1, 1).expand(2, 10, 3, 4, 4)
    judge = Scripted(prefers(bright))
    scores = Pairwise(judge).score(Media(pixels, 8.0), Prompts(("a wall", "a wall")))
    assert scores.values.tolist() == [0.0, 1.0]
    levels = [brightness(i) for i in judge.asked[0].images]
    assert len(levels) == 16
    assert levels == sorted(levels)
    assert "The first 8 of the pictures show candidate 1" in judge.asked[0].text


@pytest.mark.parametrize("text", INJECTIONS)
def test_a_prompt_stays_in_its_place(text):
    def around(reward, prompt):
        prompts = Prompts((prompt, prompt), ({"reference": greys(0.5)[0]},) * 2)
        question = reward(Scripted(yes)).questions(MEDIA.take([0, 1]), prompts)[0][0]
        before, rest = question.text.split("<prompt>\n")
        return before, rest.split("\n</prompt>\n")[1:], question.system

    for reward in (Pairwise, lambda j: Pairwise(j, form="think"), Consistency):
        assert around(reward, text) == around(reward, "a cat")


def test_a_ring_needs_opponents():
    with pytest.raises(InputError, match="1 or more"):
        Pairwise(Scripted(prefers(bright)), opponents=0)


def test_pairwise_refuses_an_unknown_form():
    with pytest.raises(InputError, match="verdict, think"):
        Pairwise(Scripted(yes), form="words")


def test_both_orders_need_both():
    assert both_orders(0.8, 0.2) == pytest.approx(0.8)
    assert [both_orders(None, 0.5), both_orders(0.5, None)] == [None, None]


# Consistency.


def alike(q):
    """Yes as far as two pictures are equally bright, less so if the brighter one comes first."""
    first, second = (brightness(i) for i in q.images)
    return yes(1 - abs(first - second) - 0.1 * (first > second))


def sheet(*levels):
    """Sub-images of these brightnesses in two rows and two columns."""
    return torch.stack([torch.tensor(levels)] * 3).view(3, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_sub_images_are_compared_in_pairs_orders_and_criteria():
    judge = Scripted(alike)
    media = Media.of_images(torch.stack([sheet(0.2, 0.2, 0.2, 0.2), sheet(0.2, 0.4, 0.6, 0.8)]))
    scores = Consistency(judge, reference=None, grid=[2, 2]).score(media, Prompts(("a comic", "a comic")))
    gaps = [0.2, 0.4, 0.6, 0.2, 0.4, 0.2]
    assert scores.values.tolist() == pytest.approx([1.0, sum(1 - g - 0.05 for g in gaps) / 6], abs=1e-5)
    assert set(scores.components) == {"style", "identity", "logic"}
    assert len(judge.asked) == 2 * 6 * 2 * 3
    first = judge.asked[36:48]
    assert len({q.text for q in first}) == 1
    assert CRITERIA["style"] in first[0].text
    shown = [tuple(round(brightness(i), 1) for i in q.images) for q in first]
    assert shown[:4] == [(0.2, 0.4), (0.4, 0.2), (0.2, 0.6), (0.6, 0.2)]


def test_criteria_are_components_of_their_own():
    judge = Scripted(lambda q: yes(1.0 if "gloomy" in q.text else 0.25))
    prompts = Prompts(("a wall",), ({"reference": greys(0.5)[0]},))
    reward = Consistency(judge, criteria={"mood": "equally gloomy", "size": "equally large"})
    scores = reward.score(MEDIA.take([0]), prompts)
    assert {k: round(v.item(), 4) for k, v in scores.components.items()} == {"mood": 1.0, "size": 0.25}
    assert scores.values.item() == pytest.approx(0.625, abs=1e-6)


def test_a_picture_is_compared_with_each_reference():
    judge = Scripted(alike)
    prompts = Prompts(("a wall",) * 2, ({"reference": list(greys(0.1, 0.3))}, {"reference": ["missing.png"]}))
    scores = Consistency(judge).score(MEDIA.take([0, 1]), prompts)
    assert scores.valid.tolist() == [True, False]
    assert scores.values[0].item() == pytest.approx((1.0 + 0.75) / 2, abs=1e-5)
    assert len(judge.asked) == 2 * 2 * 3


def test_one_missing_answer_leaves_the_row_invalid():
    judge = Scripted(lambda q: Answer(":") if CRITERIA["logic"] in q.text else yes(0.5))
    prompts = Prompts(("a wall",), ({"reference": greys(0.5)[0]},))
    scores = Consistency(judge).score(MEDIA.take([0]), prompts)
    assert scores.valid.tolist() == [False]
    assert scores.components["style"].item() == pytest.approx(0.5, abs=1e-6)


def test_pieces_cover_the_sheet_without_overlap():
    image = torch.arange(3 * 5 * 7.0).view(3, 5, 7)
    parts = pieces(image, 2, 3)
    assert [tuple(p.shape[1:]) for p in parts] == [(3, 3), (3, 2), (3, 2), (2, 3), (2, 2), (2, 2)]
    assert sorted(torch.cat([p.flatten() for p in parts]).tolist()) == image.flatten().tolist()


@pytest.mark.parametrize("grid", [(1, 1), (2,), (0, 2)])
def test_a_grid_without_pairs_is_refused(grid):
    with pytest.raises(InputError, match="gives no pairs"):
        Consistency(Scripted(yes), reference=None, grid=grid)


@pytest.mark.parametrize(
    "reward",
    [
        Pairwise(Scripted(prefers(bright, 0.1))),
        Pairwise(Scripted(lambda q: words(brightness(q.images[1]) > brightness(q.images[0]))), form="think"),
        Consistency(Scripted(alike)),
        Consistency(Scripted(alike), reference=None, grid=(1, 2)),
    ],
    ids=lambda r: r.spec.name,
)
def test_contract(reward):
    media = Media.of_images(torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    check_reward(reward, media, Prompts(("a", "b", "a", "a"), ({"reference": greys(0.3)[0]},) * 4))
