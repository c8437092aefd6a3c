"""Judges that write: marks are read in the one form that was asked for, and the formulas of the papers hold."""

import json

import pytest

from tests.rewards.test_judged import MEDIA, OPENERS, Scripted, brightness, greys, yes
from tests.rewards.test_rubrics import INJECTIONS
from visalign.rewards import rationalrewards
from visalign.rewards.check import check_reward
from visalign.rewards.editscore import EditScore
from visalign.rewards.judge import Answer
from visalign.rewards.judged import json_object, labelled, numbers, thought
from visalign.rewards.principles import Principles
from visalign.rewards.rationalrewards import RationalRewards, parse_critique, share
from visalign.rewards.rubrics import neutral
from visalign.rewards.unifiedreward import FORMS, UnifiedReward
from visalign.types import InputError, Prompts

PROMPTS = Prompts(("a dark wall", "a bright wall"), ({"source": greys(0.5)[0]}, {"source": greys(0.5)[0]}))
FOOLING = [
    *OPENERS,
    "5",
    "Score: 5",
    "Final Score:",
    "Final Score: five",
    "Final Score: 5 of course",
    "Final Score: 5/5",
    "Final Score: ٥",
    "Final Score:\n5",
    "The caption tells me to write Final Score: 5",
    "Final Score: 5\nFinal Score: 1",
    "Final Score: 9",
    "Final Score: 0",
    "Final Score: -5",
    "<answer></answer>",
    "<answer>5</answer>",
    "Alignment Score (1-5): 5",
    "# Detailed Judgement\n## Score: 4",
    "[25, 25]",
    '{"score": []}',
    '{"score": [25]}',
    '{"score": [25, 26]}',
    '{"score": [25, -1]}',
    '{"score": [true, true]}',
    '{"score": ["25", "25"]}',
    '{"score": [NaN, 25]}',
    '{"score": 25}',
    'Score: {"score": [25, 25]}',
    '{"score": [25, 25]} {"score": [25, 25]}',
    '{"score": [25, 25',
    '{"a":' * 3000 + "1" + "}" * 3000,
    "N/A",
]


def critique(marks, aspects=rationalrewards.PICTURE, **parts):
    """A critique in the form of the published weights."""
    blocks = [
        f"{i}. {a}:\n## Justification: {a} it is.\n## Score: {m}" for i, (a, m) in enumerate(zip(aspects, marks), 1)
    ]
    text = {"analysis": "A wall.", "comments": "Say which light.", "refined": "a dark wall at dusk"} | parts
    return (
        f"# User Request Analysis\n{text['analysis']}\n# Detailed Judgement\n"
        + "\n".join(blocks)
        + "\n# Summary: Fair.\n"
        f"\n# User Request Refinement:\n## Refinement Comments: {text['comments']}\n"
        f"## Refined Request: {text['refined']}"
    )


def marks(first, second):
    return Answer(json.dumps({"reasoning": "so", "score": [first, second]}))


CHECKS = {
    "follow": ["The wall is dark."],
    "keep": ["The window is there."],
    "quality": ["Edges are clean.", "No noise."],
}


def verifier(follow, keep, quality):
    """Answers checks by their kind, after it wrote them down."""

    def answer(question):
        if question.schema is not None:
            return Answer(json.dumps({kind: CHECKS[kind] for kind in question.schema["required"]}))
        statement = question.text.split("<check>\n")[1].split("\n</check>")[0]
        kind = next((kind for kind, found in CHECKS.items() if statement in found), "follow")
        return yes({"follow": follow, "keep": keep, "quality": quality}[kind])

    return answer


WRITING = {
    "1.0": lambda judge: UnifiedReward(judge, form="1.0"),
    "2.0": UnifiedReward,
    "think": lambda judge: UnifiedReward(judge, form="think"),
    "rationalrewards": RationalRewards,
    "editscore": EditScore,
    "principles": Principles,
}


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("text", FOOLING, ids=lambda t: repr(t[:30]))
def test_nothing_but_the_form_is_a_score(name, text):
    scores = WRITING[name](Scripted(lambda q: Answer(text))).score(MEDIA, PROMPTS)
    assert scores.valid.tolist() == [False, False]


@pytest.mark.parametrize("name", WRITING)
def test_a_failed_call_is_invalid_though_it_carries_text(name):
    text = {"editscore": marks(25, 25).text, "rationalrewards": critique((4, 4, 4))}.get(name, "Final Score: 5")
    scores = WRITING[name](Scripted(lambda q: Answer(text, error="timeout"))).score(MEDIA, PROMPTS)
    assert scores.valid.tolist() == [False, False]


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("text", INJECTIONS)
def test_a_prompt_stays_in_its_place(name, text):
    def around(prompt):
        judge = Scripted(verifier(1, 1, 1) if name == "principles" else lambda q: Answer(""))
        WRITING[name](judge).score(MEDIA.take([0]), Prompts((prompt,), PROMPTS.columns[:1]))
        parts = [q.text.split("<prompt>\n") for q in judge.asked]
        return [(before, *rest.split("\n</prompt>\n"), q.system) for (before, rest), q in zip(parts, judge.asked)]

    harmless, hostile = around("a cat"), around(text)
    assert [(q[0], q[2:]) for q in hostile] == [(q[0], q[2:]) for q in harmless]
    assert {q[1] for q in hostile} == {neutral(text)}


# Readers of text.


@pytest.mark.parametrize(
    "line", ["Final Score: 4", "**Final Score:** 4", "  Final Score : 4.0 ", "## Final Score: **4**."]
)
def test_a_label_on_a_line_of_its_own_is_read(line):
    assert labelled(f"It is sharp.\n{line}\nThat is all.", "Final Score") == 4.0


def test_thoughts_are_left_out():
    assert thought("<think>Final Score: 5</think>\n<answer> Final Score: 2 </answer>") == "Final Score: 2"
    assert thought("no opening mark</think><answer>2</answer>") == "2"
    assert thought("<answer>2</answer>") == "2"
    for text in (
        "<think>2</think>",
        "<answer>1</answer><answer>2</answer>",
        "<think>a</think><answer>2</answer> so there",
        "<think>I could say <answer>1</answer></think><answer>2</answer>",
    ):
        assert thought(text) is None


def test_json_is_bare_or_in_one_block():
    assert (
        json_object(' {"a": 1}\n')
        == json_object('```json\n{"a": 1}\n```')
        == json_object('```\n{"a": 1}```')
        == {"a": 1}
    )
    assert [json_object(t) for t in ('"a"', '```json\n{"a": 1}', "{a: 1}", "")] == [None] * 4
    assert numbers([0, 25.0], 2, 0, 25) == [0.0, 25.0]
    assert numbers((1, 2), 2, 0, 25) is None


# UnifiedReward.


@pytest.mark.parametrize(
    ("form", "text", "value", "parts"),
    [
        ("1.0", "A sharp picture.\nFinal Score: 4", 0.75, {"final": 4}),
        ("1.0", "Final Score: 1", 0.0, {"final": 1}),
        ("think", "<think>Final Score: 5</think><answer>Final Score: 3.5</answer>", 0.625, {"final": 3.5}),
        (
            "2.0",
            "Alignment Score (1-5): 3.5\nCoherence Score (1-5): 4.0\nStyle Score (1-5): 3",
            2.5 / 4,
            {"alignment": 3.5, "coherence": 4.0, "style": 3.0},
        ),
    ],
)
def test_unifiedreward_marks(form, text, value, parts):
    scores = UnifiedReward(Scripted(lambda q: Answer(text)), form=form).score(MEDIA, PROMPTS)
    assert scores.values.tolist() == pytest.approx([value] * 2)
    assert {name: v[0].item() for name, v in scores.components.items()} == parts


def test_unifiedreward_lacks_no_axis():
    text = "Alignment Score (1-5): 5\nCoherence Score (1-5): 5\nStyle: 5"
    scores = UnifiedReward(Scripted(lambda q: Answer(text))).score(MEDIA, PROMPTS)
    assert scores.valid.tolist() == [False, False]
    assert scores.components["style"].isnan().all()


def test_forms_name_what_they_read():
    for form in FORMS.values():
        labels = [p if p == "final" else f"{p} score (1-5)" for p in form.parts]
        assert all(label in form.rubric.text.lower() for label in labels)
    with pytest.raises(InputError, match="quotation"):
        UnifiedReward(Scripted(yes), form="2")


# RationalRewards.


def test_a_critique_is_read_section_by_section():
    found = parse_critique(critique(("3.5", "2", "N/A")))
    assert found.marks == {"Text Faithfulness": 3.5, "Physical and Visual Quality": 2.0, "Text Rendering": None}
    assert found.reasons["Text Faithfulness"] == "Text Faithfulness it is."
    assert (found.analysis, found.summary) == ("A wall.", "Fair.")
    assert (found.comments, found.refined) == ("Say which light.", "a dark wall at dusk")


@pytest.mark.parametrize(
    ("written", "value"),
    [(("3", "2", "N/A"), 0.5), (("4", "4", "4"), 1.0), (("1", "1", "1"), 0.0), (("9", "0.5", "N/A"), 0.5)],
)
def test_the_share_is_the_mean_of_clamped_marks_that_apply(written, value):
    assert share(parse_critique(critique(written))) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        critique(("N/A", "N/A", "N/A")),
        critique(("4", "N/A", "4")),
        critique(("4", "4")),
        critique(("4", "4", "4, I was told")),
        critique(("4", "4", "4")).replace("2. Physical", "2. Musical"),
        critique(("1\n## Score: 4", "4", "4")),
        critique(("4", "4", "4"))[:-40],
        critique(("4", "4", "4"), rationalrewards.EDIT),
    ],
)
def test_a_critique_in_another_form_is_none(text):
    assert parse_critique(text) is None


def test_a_score_in_a_justification_is_no_mark():
    text = critique(("2", "2", "2")).replace(
        "Text Faithfulness it is.", 'The prompt says "Score: 4", which is no mark.'
    )
    assert parse_critique(text).marks["Text Faithfulness"] == 2.0


def test_rationalrewards_gives_components_and_critiques():
    judge = Scripted(lambda q: Answer(critique(("4", "1", "N/A")) if brightness(q.images[-1]) < 0.5 else "Solution"))
    reward = RationalRewards(judge)
    scores = reward.score(MEDIA, PROMPTS)
    assert scores.valid.tolist() == [True, False]
    assert scores.values[0] == 0.5
    assert scores.components["text_faithfulness"][0] == 4
    assert scores.components["text_rendering"][0].isnan()
    first, second = reward.critiques(MEDIA, PROMPTS)
    assert (first.refined, second) == ("a dark wall at dusk", None)
    assert (judge.asked[0].temperature, judge.asked[0].max_tokens) == (0.1, 2048)


def test_rationalrewards_of_edits_has_a_fourth_aspect_and_shows_the_source_first():
    judge = Scripted(lambda q: Answer(critique(("4", "1", "2", "3"), rationalrewards.EDIT)))
    scores = RationalRewards(judge, source="source").score(MEDIA, PROMPTS)
    assert scores.values.tolist() == [0.5, 0.5]
    assert scores.components["image_faithfulness"].tolist() == [1, 1]
    assert [brightness(i) for i in judge.asked[1].images] == [0.5, 0.75]
    for aspect in rationalrewards.EDIT:
        assert aspect in judge.asked[0].text


def test_our_own_rubric_asks_for_the_form_that_is_read():
    asked = RationalRewards(Scripted(yes)).questions(MEDIA, PROMPTS)[0][0].text
    form = asked[asked.index("# User Request Analysis") :].replace("## Score: <number>", "## Score: 3")
    assert share(parse_critique(form)) == pytest.approx(2 / 3)


# The contract.


def by_brightness(q):
    low, high = brightness(q.images[-1]), 1 - brightness(q.images[-1])
    lines = [f"{a} Score (1-5): {1 + 4 * v}" for a, v in (("Alignment", low), ("Coherence", high), ("Style", low))]
    return Answer("\n".join(lines))


@pytest.mark.parametrize(
    "reward",
    [
        UnifiedReward(Scripted(by_brightness)),
        UnifiedReward(Scripted(lambda q: Answer(f"Final Score: {1 + 4 * brightness(q.images[0])}")), form="1.0"),
        RationalRewards(Scripted(lambda q: Answer(critique((3, 1 + 3 * brightness(q.images[0]), 2))))),
        EditScore(Scripted(lambda q: marks(25 * brightness(q.images[-1]), 12 + q.seed)), passes=3),
        Principles(Scripted(verifier(0.7, 0.6, 0.5)), source="source"),
    ],
    ids=lambda r: r.spec.name,
)
def test_contract(reward):
    check_reward(reward, MEDIA, PROMPTS)
