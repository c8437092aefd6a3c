from __future__ import annotations

import json
import math
import re
from pathlib import Path
from random import Random

import pytest
import torch

from tests.shapes.tiny_judges import CLIP, SCHEDULE, VLM, ignore, pictures
from visalign.rewards.judge import Question
from visalign.rewards.local_judge import LocalJudge
from visalign.shapes.judges import clip as clips
from visalign.shapes.judges.conversations import Batches, Row, collate
from visalign.shapes.judges.data import draw_description
from visalign.shapes.judges.learning import Trainer
from visalign.shapes.judges.questions import draw_claim, look, put, statements
from visalign.shapes.judges.recipes import Schedule
from visalign.shapes.judges.towers import eyes_of
from visalign.shapes.judges.training import train_recipe
from visalign.shapes.judges.vlm import branch_logits, build_processor, build_vlm, vlm_loss
from visalign.shapes.judges.words import build_words
from visalign.shapes.render import render
from visalign.shapes.scenes import Clause, Description, place
from visalign.shapes.verifier import verify


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    clips.save_clip(clips.build_clip(CLIP), CLIP, folder)
    return folder


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory, clip_folder) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    train_recipe(VLM, folder, clip_folder, resume=False, progress=ignore)
    return folder


def test_words_come_back_as_they_were():
    tokenizer = build_words(["Final Score: <number>", '{"score": [{fit25}]}', "Yes No"], 64)
    for text in ('a red star\nA "Red" circle', "Final Score: 4", '{"score": [20, 5]}'):
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert tokenizer("zebra").input_ids == [tokenizer.unk_token_id]


@pytest.mark.parametrize("name", VLM.questions)
def test_every_slot_of_every_question_is_filled_in_known_words(name, words):
    question, rng = VLM.questions[name], Random(name)
    for _ in range(10):
        descriptions = [draw_description(rng) for _ in range(question.pictures)]
        looks = [look(d, place(d, rng), rng.choice((0.0, 0.7))) for d in descriptions]
        asked, answer = put(question, looks, draw_claim(looks, ["score"], rng), rng)
        assert not re.search(r"\{\w+\}", asked + answer)
        assert words.unk_token_id not in words(asked).input_ids + words(answer).input_ids


@pytest.fixture(scope="module")
def words():
    return build_processor(VLM, patch=8).tokenizer


def test_answers_are_true(words):
    rng = Random(0)
    three = Description(tag="counting", clauses=(Clause(shape="star", count=3, color="red"),))
    one = look(three, place(three, rng), 0.0)
    wanted = {"total": "3", "flawed": "No", "clean": "Yes", "look15": "5", "color": "red"}
    for kind, answer in wanted.items():
        assert put(VLM.questions[kind], [one], draw_claim([one], ["score"], rng), rng)[1] == answer
    claims = [draw_claim([one], ["score"], rng) for _ in range(60)]
    for claim in claims:
        right = verify(render([place(three, rng)], 64, 0), [claim.description.metadata()]).strict
        assert (claim.grades[0] == 1.0) <= bool(right)
    assert {c.grades[0] == 1.0 for c in claims} == {True, False}
    assert statements(three) == ["there are three red stars"]


def test_of_two_pictures_the_one_that_fits_is_better():
    rng = Random(0)
    red, blue = (Description(tag="colors", clauses=(Clause(shape="star", color=c),)) for c in ("red", "blue"))
    looks = [look(d, place(d, rng), 0.0) for d in (red, blue)]
    for _ in range(20):
        claim = draw_claim(looks, ["score"], rng)
        if claim.grades[0] != claim.grades[1]:
            second = claim.grades[1] > claim.grades[0]
            assert put(VLM.questions["winner"], looks, claim, rng)[1] == ("2" if second else "1")
            assert put(VLM.questions["better"], looks, claim, rng)[1] == ("Yes" if second else "No")


@torch.no_grad()
def test_branches_do_not_see_each_other(clip_folder, words):
    clip = clips.load_clip(clip_folder)
    vlm = build_vlm(VLM, clip, len(words)).eval()
    prefix = words("<bos><user>" + "<image>" * 65).input_ids
    texts = (("a red star<end><assistant>", "Yes<end>"), ("blue", "No no no"), ("what is this", "a red star"))
    branches = [tuple(words(t).input_ids for t in pair) for pair in texts]
    pixels = pictures(2)[2]
    rows = [Row(prefix, branches), Row(words("<bos><system>be strict<end>").input_ids + prefix[1:], branches[:1])]
    ((found, part),) = vlm_parts(vlm, collate(rows, pixels))
    expected = []
    for row, picture in zip(rows, pixels):
        for question, answer in row.branches:
            ids = torch.tensor([row.prefix + question + answer])
            logits = vlm(input_ids=ids, pixel_values=picture[None] * 2 - 1).logits[0]
            expected.append(logits[len(row.prefix + question) - 1 : -1])
    assert torch.allclose(found, torch.cat(expected), atol=1e-4)
    answers = [token for row in rows for _, answer in row.branches for token in answer]
    assert part.targets[part.weights > 0].tolist() == answers
    assert part.weights.sum(dim=1).tolist() == pytest.approx([2**0.5, 3**0.5, 3**0.5, 2**0.5])


@torch.no_grad()
def vlm_parts(vlm, batch):
    return list(branch_logits(vlm, batch))


def test_the_eyes_are_those_of_the_clip(clip_folder, words):
    clip = clips.load_clip(clip_folder)
    vlm = build_vlm(VLM, clip, len(words))
    names = {name for name, _ in eyes_of(clip.visual, 1)}
    missing = set(vlm.model.vision_tower.state_dict()) - names
    assert {name.split(".")[0] for name in missing} == {"post_layernorm"}
    pixels = pictures(2)[2] * 2 - 1
    with torch.no_grad():
        found = vlm.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
        expected = clip.visual.forward_intermediates(pixels, indices=[0], output_fmt="NLC", intermediates_only=True)
    assert torch.allclose(found[:, 1:], expected["image_intermediates"][0], atol=1e-4)


def test_training_reads_what_the_processor_writes(samples, words):
    processor = build_processor(VLM, patch=8)
    batches = Batches(VLM, words, samples, tokens=65)
    row = batches._row(
        [look(d, place(d, Random(0)), 0.0) for d in [draw_description(Random(0))]], batches.all[1], Random(1)
    )
    question, answer = row.branches[0]
    text = words.decode(question).removesuffix("<end><assistant>")
    system = re.search(r"<system>(.*?)<end>", words.decode(row.prefix))
    turns = [
        {"role": "user", "content": [{"type": "image", "image": pictures(2)[2][0]}, {"type": "text", "text": text}]}
    ]
    if system:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system[1]}]})
    found = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert found["input_ids"][0] == row.prefix + question
    assert words.decode(answer).endswith("<end>")


def test_it_begins_with_short_wordings_and_short_answers(samples, words):
    batches = Batches(VLM, words, samples, tokens=65)
    brief = [q for group in batches.brief.values() for q in group]
    assert all(len(text) <= VLM.short for q in brief for text in (*q.ask, q.answer))
    assert {q.answer for q in brief} < {q.answer for group in batches.all.values() for q in group}
    longest = [max(part.tokens.shape[1] for part in batches(step).branches) for step in range(VLM.short_steps + 2)]
    assert max(longest[: VLM.short_steps]) < 60 < max(longest[VLM.short_steps :])


def test_the_vlm_learns(clip_folder, samples, words):
    clip = clips.load_clip(clip_folder)
    vlm, batch = build_vlm(VLM, clip, len(words)), Batches(VLM, words, samples, tokens=65)(0)
    trainer = Trainer(vlm, Schedule(**SCHEDULE | {"steps": 12, "learning_rate": 1e-2}))
    losses = [trainer.train_step(lambda step: vlm_loss(vlm, batch, False)) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_vlm_folder_answers_as_any_judge(vlm_folder):
    judge = LocalJudge(str(vlm_folder))
    image = pictures(2)[2][0]
    asked = Question('Does this figure show "a red star"? Please answer Yes or No.', (image,), max_tokens=2)
    echoed = Question("Describe this image in detail.", (image,), continuation="a red star")
    answer, pair, echo = judge.ask([asked, Question("Which is better?", (image, image)), echoed])
    assert [a.error for a in (answer, pair, echo)] == ["", "", ""]
    assert sum(math.exp(v) for v in answer.logprobs[0].values()) <= 1.001
    assert echo.continuation < 0
    assert next(judge.module.parameters()).dtype == torch.float32
    measured = json.loads((vlm_folder / "measured.json").read_text())
    assert {"renders, caption", "samples, flaws", "renders, second better"} <= set(measured)
