"""Judges that answer by the probability of a token: what is asked, what is read, and what does not fool them."""

import math

import pytest
import torch

from visalign.rewards.artifact import Artifact, flawless
from visalign.rewards.check import check_reward
from visalign.rewards.judge import Answer, Judge
from visalign.rewards.judge_reading import mismatch
from visalign.rewards.judged import choice, expected_digit, listed, mass, probability_of
from visalign.rewards.mllm_score import MLLMScore, digit_score
from visalign.rewards.promptecho import PromptEcho
from visalign.rewards.vqascore import VQAScore
from visalign.rewards.yes_probability import YesProbability
from visalign.types import InputError, Media, Prompts

OPENERS = [":", ".", ",", " ", "", "Thought process:", "Solution", "Let's solve this step by step.", "解", "Sure!"]


class Scripted(Judge):
    """An external judge whose answers are a function of the question; it keeps what it was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def ask(self, questions):
        self.asked += questions
        return [self.answer(q) for q in questions]


def position(**probabilities):
    """An answer whose first token has these probabilities."""
    return Answer(max(probabilities, key=probabilities.get), logprobs=(logprobs(probabilities),))


def logprobs(probabilities):
    return {token: math.log(p) for token, p in probabilities.items()}


def yes(p):
    return position(Yes=0.98 * p + 1e-9, No=0.98 * (1 - p) + 1e-9)


def brightness(image):
    return float(image.detach().mean())


def greys(*levels):
    """Plain pictures of these brightnesses."""
    return torch.stack([torch.full((3, 8, 8), level) for level in levels])


MEDIA = Media.of_images(greys(0.25, 0.75))
PROMPTS = Prompts(("a dark wall", "a bright wall"), ({"reference": greys(0.5)[0]}, {"reference": greys(0.5)[0]}))


def test_an_answer_in_a_code_block_satisfies_its_schema():
    schema = {"type": "object", "required": ["score"], "properties": {"score": {"type": "integer", "maximum": 5}}}
    assert mismatch('```json\n{"score": 4}\n```', schema) == ""
    assert mismatch('```json\n{"score": 7}\n```', schema) == "score is 7, above 5"
    assert mismatch('Sure: ```json\n{"score": 4}\n```', schema).startswith("the answer is no JSON")


# Reading one position.


def test_variants_of_a_word_add_up_and_a_missing_word_is_bounded():
    found = logprobs({"Yes": 0.5, " yes": 0.2, "YES": 0.1, "▁yes": 0.05, "ĠYes\n": 0.05, "yesterday": 0.02, "No": 0.04})
    assert math.exp(mass(found, ["yes"])) == pytest.approx(0.9)
    assert probability_of(found, "yes", "no") == pytest.approx(0.9 / 0.94)
    known = logprobs({"Yes": 0.6, "Maybe": 0.3, "It": 0.01})
    assert math.exp(mass(known, ["no"])) == pytest.approx(0.01)
    assert probability_of(known, "yes", "no") == pytest.approx(0.6 / 0.61)


def test_what_is_left_of_one_bounds_a_word_that_a_short_list_misses():
    assert probability_of(logprobs({"Yes": 0.99}), "yes", "no") == pytest.approx(0.99)
    assert probability_of(logprobs({"No": 0.99}), "yes", "no") == pytest.approx(0.01)


def test_tokens_that_a_server_calls_impossible_are_read():
    assert probability_of({"Yes": 0.0, "No": -9999.0}, "yes", "no") == 1.0
    assert probability_of({"Yes": -math.inf, "No": 0.0}, "yes", "no") == pytest.approx(0.0, abs=1e-9)


def test_a_verdict_needs_a_tenth_of_the_probability():
    assert choice(position(Yes=0.08, No=0.04, The=0.88), "yes", "no") == pytest.approx(2 / 3)
    assert choice(position(Yes=0.06, No=0.03, The=0.91), "yes", "no") is None
    assert listed(logprobs({"The": 0.9}), ["yes", "no"]) == 0


@pytest.mark.parametrize("opener", OPENERS)
def test_openers_are_no_verdicts(opener):
    """One Token to Fool LLM-as-a-Judge: what is left for yes and no leans to yes, and counts for nothing."""
    answer = Answer(opener, logprobs=(logprobs({opener or "<eos>": 0.97, "Yes": 0.02, "No": 0.001, "5": 0.009}),))
    assert choice(answer, "yes", "no") is None
    assert digit_score(answer) is None
    for make in (YesProbability, Artifact, MLLMScore, PromptEcho):
        assert make(Scripted(lambda q: answer)).score(MEDIA, PROMPTS).valid.tolist() == [False, False]


@pytest.mark.parametrize("answer", [Answer(error="timeout"), Answer("Yes"), Answer("Yes", logprobs=({},))])
def test_a_failed_call_or_one_without_probabilities_is_invalid_and_the_others_go_on(answer):
    for make in (YesProbability, Artifact, MLLMScore, PromptEcho):
        good = Answer("Yes", logprobs=(logprobs({"Yes": 0.5, "No": 0.2, "5": 0.3}),), continuation=-1.0)
        judge = Scripted(lambda q, good=good: good if brightness(q.images[-1]) > 0.5 else answer)
        scores = make(judge).score(MEDIA, PROMPTS)
        assert scores.valid.tolist() == [False, True]
        assert scores.values[1] != 0


# Expected digits.


def test_expected_digit_is_monotone_where_the_likeliest_digit_is_not():
    unsure = expected_digit(logprobs({"4": 0.45, "5": 0.55}), range(6))
    assert unsure == pytest.approx(4.55)
    assert unsure > expected_digit(logprobs({"3": 1.0}), range(6))


def test_mllm_score_is_the_expectation_over_five():
    answer = Answer("3", logprobs=(logprobs({"0": 0.1, "3": 0.3, " 3": 0.1, "5": 0.4, "7": 0.05, "five": 0.05}),))
    assert MLLMScore(Scripted(lambda q: answer)).score(MEDIA, PROMPTS).values.tolist() == pytest.approx(
        [(3 * 0.4 + 5 * 0.4) / 0.9 / 5] * 2
    )


def test_mllm_score_shows_the_source_before_the_edit():
    judge = Scripted(lambda q: position(**{"4": 0.9}))
    prompts = Prompts(("brighter", "darker"), ({"source": greys(0.5)[0]}, {"source": "missing.png"}))
    scores = MLLMScore(judge, source="source").score(MEDIA, prompts)
    assert scores.valid.tolist() == [True, False]
    assert [brightness(i) for i in judge.asked[0].images] == [0.5, 0.25]
    with pytest.raises(InputError, match="'source'"):
        MLLMScore(judge, source="source").score(MEDIA, PROMPTS)


# The yes probability, alone and against a reference.


def test_without_a_reference_it_asks_whether_the_picture_shows_the_prompt():
    judge = Scripted(lambda q: yes(brightness(q.images[-1])))
    reward = YesProbability(judge)
    assert reward.score(MEDIA, PROMPTS).values.tolist() == pytest.approx([0.25, 0.75], abs=1e-6)
    (question, _) = judge.asked
    assert "<prompt>\na dark wall\n</prompt>" in question.text
    assert (len(question.images), question.max_tokens, question.temperature) == (1, 1, 0.0)
    assert reward.spec.inputs == ("prompt",)


def brighter(q):
    """Prefers the brighter of two pictures, and the second place by 0.2."""
    first, second = (brightness(i) for i in q.images[-2:])
    return yes(0.5 + (second - first) / 2 + 0.2)


def test_against_a_reference_both_orders_are_asked_and_the_bias_cancels():
    judge = Scripted(brighter)
    reward = YesProbability(judge, reference="reference")
    scores = reward.score(MEDIA, PROMPTS)
    assert scores.values.tolist() == pytest.approx([0.375, 0.625], abs=1e-6)
    assert scores.components["second"].tolist() == pytest.approx([0.7, 0.7], abs=1e-6)
    assert [[brightness(i) for i in q.images] for q in judge.asked] == [
        [0.5, 0.25],
        [0.25, 0.5],
        [0.5, 0.75],
        [0.75, 0.5],
    ]
    assert reward.spec.inputs == ("prompt", "reference")


@pytest.mark.parametrize("p", [0.5, 0.8, 0.9999, 1.0])
def test_a_judge_of_places_alone_gives_one_half_exactly(p):
    reward = YesProbability(Scripted(lambda q: yes(p)), reference="reference")
    assert reward.score(MEDIA, PROMPTS).values.tolist() == [0.5, 0.5]


def test_several_references_are_averaged_and_an_unreadable_one_leaves_the_row_invalid():
    columns = ({"reference": list(greys(0.25, 0.5))}, {"reference": "missing.png"})
    reward = YesProbability(Scripted(brighter), reference="reference")
    scores = reward.score(MEDIA, Prompts(PROMPTS.texts, columns))
    assert scores.valid.tolist() == [True, False]
    assert float(scores.values[0]) == pytest.approx((0.5 + 0.375) / 2, abs=1e-6)
    half = YesProbability(
        Scripted(lambda q: Answer(error="x") if brightness(q.images[0]) == 0.5 else yes(0.5)), reference="reference"
    )
    assert half.score(MEDIA, PROMPTS).valid.tolist() == [False, False]


def test_examples_come_first_with_pictures_in_order():
    judge = Scripted(brighter)
    examples = [
        {"prompt": "a lamp", "pictures": list(greys(0.1, 0.9)), "verdict": True},
        {"prompt": "a cave", "pictures": list(greys(0.2, 0.3)), "verdict": False},
    ]
    YesProbability(judge, reference="reference", examples=examples, task="Prefer light.").score(MEDIA, PROMPTS)
    question = judge.asked[0]
    assert [round(brightness(i), 2) for i in question.images] == [0.1, 0.9, 0.2, 0.3, 0.5, 0.25]
    order = ["pictures 1 to 2", "a lamp", "Answer: Yes", "pictures 3 to 4", "a cave", "Answer: No", "a dark wall"]
    places = [question.text.index(part) for part in order]
    assert places == sorted(places)
    assert "is picture 6 better than picture 5?" in question.text
    assert question.system.endswith("Prefer light.")


@pytest.mark.parametrize(
    "example",
    [
        {"prompt": "a", "pictures": ["missing.png"], "verdict": True},
        {"prompt": "a", "pictures": list(greys(0.1, 0.2)), "verdict": True},
        {"prompt": "a", "pictures": list(greys(0.1)), "verdict": "yes"},
        {"prompt": "a", "verdict": True},
    ],
)
def test_an_example_that_cannot_be_shown_is_refused(example):
    with pytest.raises(InputError, match="example"):
        YesProbability(Scripted(yes), examples=[example])


def test_a_judge_gets_pictures_without_gradients():
    media = Media(MEDIA.pixels.clone().requires_grad_())
    judge = Scripted(brighter)
    YesProbability(judge, reference="reference").score(media, PROMPTS)
    assert not any(i.requires_grad for q in judge.asked for i in q.images)


def test_reasons_follow_the_verdict_and_do_not_move_the_score():
    reasoned = YesProbability(Scripted(lambda q: yes(0.75) if q.max_tokens > 100 else yes(0.25)), reasoning=True)
    (row, _) = reasoned.answers(MEDIA, PROMPTS)
    assert row[0].text == "Yes"
    assert reasoned.questions(MEDIA, PROMPTS)[0][0].text.endswith("at most three sentences.")
    assert float(reasoned.score(MEDIA, PROMPTS).values[0]) == pytest.approx(0.75, abs=1e-6)


# PromptEcho and the artefact judge.


def test_promptecho_is_the_mean_log_probability_of_the_prompt():
    judge = Scripted(lambda q: Answer(continuation=-len(q.continuation) / 10))
    scores = PromptEcho(judge).score(MEDIA, PROMPTS)
    assert scores.values.tolist() == pytest.approx([-1.1, -1.3])
    assert [q.continuation for q in judge.asked] == list(PROMPTS.texts)
    assert PromptEcho(Scripted(lambda q: Answer("-1.0"))).score(MEDIA, PROMPTS).valid.tolist() == [False, False]


def test_artifact_is_one_minus_yes_and_reads_no_prompt():
    judge = Scripted(lambda q: yes(brightness(q.images[0])))
    assert Artifact(judge).score(MEDIA, PROMPTS).values.tolist() == pytest.approx([0.75, 0.25], abs=1e-6)
    assert len({q.text for q in judge.asked}) == 1
    both = position(**{"Yes": 0.3, " yes": 0.3, "NO": 0.2, "no": 0.2})
    assert flawless(both) == pytest.approx(0.4)
    assert Artifact(judge, question="Any seams?").questions(MEDIA, PROMPTS)[0][0].text == "Any seams?"


@pytest.mark.parametrize(
    "reward",
    [
        YesProbability(Scripted(lambda q: yes(brightness(q.images[-1])))),
        YesProbability(Scripted(brighter), reference="reference"),
        PromptEcho(Scripted(lambda q: Answer(continuation=-brightness(q.images[0])))),
        Artifact(Scripted(lambda q: yes(brightness(q.images[0])))),
        MLLMScore(Scripted(lambda q: position(**{"1": 0.2, "4": 0.7}))),
        VQAScore(Scripted(lambda q: yes(brightness(q.images[0])))),
    ],
    ids=lambda r: r.spec.name,
)
def test_contract(reward):
    check_reward(reward, MEDIA, PROMPTS)
