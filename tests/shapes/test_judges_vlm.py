from __future__ import annotations

import json
import math
import re
from pathlib import Path
from random import Random

import pytest
import torch

from tests.shapes.tiny_judges import CLIP, VLM, fall, ignore, pictures
from visalign.rewards.judge import Question
from visalign.rewards.local_judge import LocalJudge
from visalign.shapes.judges import clip as clips
from visalign.shapes.judges import measure_vlm
from visalign.shapes.judges.claims import Claim, draw_claim, look, statements
from visalign.shapes.judges.conversations import Batches
from visalign.shapes.judges.data import draw_description
from visalign.shapes.judges.learning import Place
from visalign.shapes.judges.questions import agreement, put, shorten, slots
from visalign.shapes.judges.rows import BORDERS, Branch, Row, collate, worth
from visalign.shapes.judges.towers import eyes_of
from visalign.shapes.judges.training import train_recipe
from visalign.shapes.judges.vlm import (
    Learner,
    branch_states,
    build_processor,
    build_vlm,
    comparison_losses,
    train_vlm,
    vlm_loss,
)
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            measure_vlm, "LENGTHY", ("unifiedreward",)
        )  # untrained, it talks to the end of the other's 2,048 tokens
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
        asked = put(question, looks, draw_claim(looks, ["score"], 0.5, rng), rng)
        assert not re.search(r"\{\w+\}", asked.question + asked.answer)
        assert words.unk_token_id not in words(asked.question).input_ids + words(asked.answer).input_ids


@pytest.fixture(scope="module")
def words():
    return build_processor(VLM, patch=8).tokenizer


def test_answers_are_true(words):
    rng = Random(0)
    three = Description(tag="counting", clauses=(Clause(shape="star", count=3, color="red"),))
    one = look(three, place(three, rng), 0.0)
    wanted = {"total": "3", "flawed": "No", "clean": "Yes", "look15": "5", "color": "red"}
    for kind, answer in wanted.items():
        assert put(VLM.questions[kind], [one], draw_claim([one], ["score"], 0.5, rng), rng).answer == answer
    claims = [draw_claim([one], ["score"], 0.5, rng) for _ in range(60)]
    for claim in claims:
        right = verify(render([place(three, rng)], 64, 0), [claim.description.metadata()]).strict
        assert (claim.grades[0] == 1.0) <= bool(right)
    assert {c.grades[0] == 1.0 for c in claims} == {True, False}
    for _ in range(20):
        asked = put(VLM.questions["present"], [one], claims[0], rng)
        named = re.search(r"an? (?P<words>[a-z ]+?)(?: in the picture)?\??$", asked.question)
        if named:
            assert (asked.answer == "Yes") == (named["words"] in ("star", "red star"))
    assert statements(three) == ["there are three red stars"]


def test_claims_that_are_far_off_speak_of_something_else():
    rng = Random(0)
    one = look(draw_description(rng), place(draw_description(rng), rng), 0.0)
    near, far = ([draw_claim([one], ["score"], share, rng) for _ in range(80)] for share in (1.0, 0.0))
    shapes = {clause.shape for clause in one.description.clauses}

    def shared(claims):
        wrong = [c.description for c in claims if c.description != one.description]
        return sum(bool(shapes & {clause.shape for clause in d.clauses}) for d in wrong) / len(wrong)

    assert shared(near) > shared(far) + 0.2


def test_words_that_turn_a_meaning_are_never_left_out():
    rng = Random(0)
    found = [shorten("Is this image without flaws?", rng) for _ in range(100)]
    assert all("without" in text for text in found)
    assert len(set(found)) > 3


def test_of_two_pictures_the_one_that_fits_is_better():
    rng = Random(0)
    red, blue = (Description(tag="colors", clauses=(Clause(shape="star", color=c),)) for c in ("red", "blue"))
    looks = [look(d, place(d, rng), 0.0) for d in (red, blue)]
    for _ in range(20):
        claim = draw_claim(looks, ["score"], 0.5, rng)
        if claim.grades[0] != claim.grades[1]:
            second = claim.grades[1] > claim.grades[0]
            assert put(VLM.questions["winner"], looks, claim, rng).answer == ("2" if second else "1")
            assert put(VLM.questions["better"], looks, claim, rng).answer == ("Yes" if second else "No")


def test_an_edit_keeps_what_its_instruction_does_not_change():
    star, square = (Clause(shape=shape, count=1, color="red") for shape in ("star", "square"))
    blue = Clause(shape="square", count=1, color="blue")
    rng = Random(0)

    def shown(*clauses):
        description = Description(tag="two_object", clauses=clauses)
        return look(description, place(description, rng), 0.0)

    source, goal = shown(star, square), Description(tag="two_object", clauses=(star, blue))
    for last, kept in ((shown(star, blue), "25"), (source, "25"), (shown(blue), "0")):
        claim = Claim(goal.caption, goal, (1.0, 1.0), goal.caption)
        assert slots([source, last], claim, rng)["kept25"] == kept
        assert agreement("[{fit25}, {kept25}]", [source, last], claim) == int(kept) / 25
        assert math.isnan(agreement("{fit25}", [source, last], claim))
    assert agreement("{same}", [source, shown(star, blue)], claim) == 0.5


@torch.no_grad()
def test_branches_do_not_see_each_other(clip_folder, words):
    clip = clips.load_clip(clip_folder)
    vlm = build_vlm(VLM, clip, len(words)).eval()
    prefix = words("<bos><user>" + "<image>" * 65).input_ids
    texts = (("a red star<end><assistant>", "Yes<end>"), ("blue", "No no no"), ("what is this", "a red star"))
    read = [(words(question).input_ids, words(answer).input_ids) for question, answer in texts]
    branches = [Branch(question, answer, worth(answer, ()), "", (math.nan, math.nan)) for question, answer in read]
    pixels = pictures(2)[2]
    longer = words("<bos><system>be strict<end>").input_ids + prefix[1:]
    rows = [Row(prefix, branches, 1, math.nan), Row(longer, branches[:1], 1, math.nan)]
    ((states, part),) = branch_states(vlm, collate(rows, pixels))
    found = vlm.lm_head(states[-1][part.weights > 0])
    expected, ends = [], []
    for row, picture in zip(rows, pixels):
        for branch in row.branches:
            ids = torch.tensor([row.prefix + branch.question + branch.answer])
            logits = vlm(input_ids=ids, pixel_values=picture[None] * 2 - 1).logits[0]
            expected.append(logits[len(row.prefix + branch.question) - 1 : -1])
            ends.append(expected[-1][0])
    assert torch.allclose(found, torch.cat(expected), atol=1e-4)
    last = states[-1][torch.arange(len(ends)), part.ends]
    assert torch.allclose(vlm.lm_head(last), torch.stack(ends), atol=1e-4)
    answers = [token for row in rows for branch in row.branches for token in branch.answer]
    assert part.targets[part.weights > 0].tolist() == answers
    assert part.weights.sum(dim=1).tolist() == pytest.approx([2**0.5, 3**0.5, 3**0.5, 2**0.5])


def test_a_mark_counts_as_much_in_a_long_answer_as_in_a_short_one(samples, words):
    batches = Batches(VLM, words, samples, tokens=65)
    long = words('{"reasoning": "it shows a red star", "score": [25, 7]}<end>', add_special_tokens=False).input_ids
    counted = worth(long, batches.digits)
    assert [words.decode(t).strip() for t, w in zip(long, counted) if w == 1] == ["2", "5", "7"]
    others = [w for w in counted if w != 1]
    assert sum(others) == pytest.approx(len(others) ** 0.5)
    assert len(batches.digits) == 20  # each digit with and without a space before it


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
    description, phase = draw_description(Random(0)), VLM.phases[-1]
    row = batches._row([look(description, place(description, Random(0)), 0.0)], batches.groups[-1][1], phase, Random(1))
    question, answer = row.branches[0].question, row.branches[0].answer
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
    kinds = [[q for group in groups.values() for q in group] for groups in batches.groups]
    most = VLM.phases[0].longest
    assert all(len(text) <= most for q in kinds[0] for text in (*q.ask, q.answer))
    assert [len(found) for found in kinds] == sorted(len(found) for found in kinds)
    assert len(kinds[-1]) == len(VLM.questions)
    assert set(batches.groups[0]) == {1}
    assert [batches.phase(step) for step in range(6)] == [0, 1, 2, 3, 4, 4]
    longest = [max(part.tokens.shape[1] for part in batches(step).branches) for step in range(6)]
    assert max(longest[:2]) < 60 < max(longest[2:])


def test_a_caption_is_learned_where_the_question_holds_it_against_a_picture(samples, words):
    batches = Batches(VLM, words, samples, tokens=65)
    parts = [part for step in range(3) for part in batches(step).branches]
    named = [(words.decode(part.tokens[i]), c) for part in parts for i, c in enumerate(part.captions) if c]
    assert named
    assert all(caption.lower() in text.lower() for text, caption in named)


def test_verdicts_are_learned_where_a_question_asks_for_them(samples, words):
    batches = Batches(VLM, words, samples, tokens=65)
    parts = [part for step in range(12) for part in batches(step + 3).branches]
    held = torch.cat([~part.verdicts[:, 0].isnan() for part in parts])
    assert held.tolist() == [bool(c) for part in parts for c in part.captions]
    silent = [
        (words.decode(part.tokens[i]), bool(part.verdicts[i, 1].isnan()))
        for part in parts
        for i in range(len(part.ends))
    ]
    about = [unknown for text, unknown in silent if "agree" in text or "consistent" in text]
    assert about
    assert not any(about)
    assert any(unknown for _, unknown in silent)


def test_what_pictures_show_and_share_is_read_in_rows_of_several(clip_folder, samples, words):
    batches = Batches(VLM, words, samples, tokens=65)
    for batch in [batches(step) for step in range(3, 15)]:
        shown, each = len(batch.pixels), len(batch.pixels) // len(batch.tokens)
        assert batch.common.isnan().tolist() == [each < 2] * len(batch.tokens)
        if each >= 2:
            assert batch.ends.tolist() == [[i, i + each - 1] for i in range(0, shown, each)]
    learner = Learner(VLM, clips.load_clip(clip_folder), len(words))
    for reader in (learner.pair, learner.common, learner.recalled):
        torch.nn.init.zeros_(reader.weight)
    learner.common.bias.data.fill_(30.0)
    learner.recalled.bias.data.copy_(torch.tensor([50.0, 10.0]))
    pairs = torch.stack([learner.pair.bias.detach(), learner.pair.bias.detach() + 2.0])
    states, ends = (torch.ones(2, 5, 16),) * 3, torch.tensor([2, 4])
    losses = comparison_losses(learner, states, ends, pairs, torch.tensor([1.0, 0.0]), VLM)
    assert losses.tolist() == pytest.approx([0.0, 30.0 + 30.0 + 4.0], abs=1e-4)


def test_some_videos_stand_still_while_the_description_stays(samples, words):
    batches = Batches(VLM, words, samples, tokens=65)
    shown = batches._shown([4] * 40, batches.groups[-1], Random(0))
    still = [bool((pixels[0] == pixels[1]).all() and (pixels[2] == pixels[3]).all()) for pixels, _, _ in shown]
    assert 0.2 < sum(still) / len(still) < 0.8
    for pixels, looks, _ in shown:
        for one, other in ((0, 1), (2, 3)):
            assert not (pixels[one] == pixels[other]).all() or looks[one] == looks[other]


def test_the_teacher_scales_its_embeddings(teacher):
    descriptions, _, pixels = pictures(64)
    captions = [d.caption for d in descriptions]
    for found in (teacher.texts(captions), teacher.images(pixels)):
        assert found.mean().abs() < 0.3
        assert 0.7 < found.std() < 1.3
    assert torch.allclose(teacher.texts(captions[:2]), teacher.texts(captions)[:2], atol=1e-4)


def test_the_vlm_learns(clip_folder, samples, words, teacher):
    clip = clips.load_clip(clip_folder)
    learner, batch = Learner(VLM, clip, len(words)), Batches(VLM, words, samples, tokens=65)(0)
    eyes = [p.clone() for p in learner.vlm.model.vision_tower.parameters()]
    assert fall(learner, VLM, lambda: vlm_loss(learner, batch, teacher, VLM, 1.0), steps=12, rate=1e-2) > 0.2
    assert all(torch.equal(a, b) for a, b in zip(eyes, learner.vlm.model.vision_tower.parameters()))


def test_the_loss_is_the_same_whether_questions_stand_in_one_part_or_in_several(clip_folder, samples, words, teacher):
    recipe = VLM.model_copy(update={"schedule": VLM.schedule.model_copy(update={"autocast": False})})
    learner = Learner(recipe, clips.load_clip(clip_folder), len(words))
    several, one = (Batches(recipe, words, samples, 65, borders)(3) for borders in (BORDERS, BORDERS[-1:]))
    assert len(several.branches) > len(one.branches) == 1
    losses = [vlm_loss(learner, batch, teacher, recipe, 1.0).item() for batch in (several, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_batch_moves_to_a_device_with_all_its_parts(samples, words):
    moved = Batches(VLM, words, samples, tokens=65)(0).to("meta")
    tensors = [v for holder in (moved, *moved.branches) for v in vars(holder).values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 5 + 7 * len(moved.branches)
    assert all(tensor.is_meta for tensor in tensors)


def test_workers_change_nothing(vlm_folder, clip_folder, tmp_path):
    train_vlm(VLM, clip_folder, tmp_path, tmp_path, ignore, Place(workers=2))
    one, other = (folder / "model.safetensors" for folder in (vlm_folder, tmp_path))
    assert one.read_bytes() == other.read_bytes()


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
    single = {"renders, caption", "samples, flaws", "renders, one style", "renders, same objects, others"}
    assert single | {"samples, unifiedreward", "videos, videoscore2"} <= set(measured)
