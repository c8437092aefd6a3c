from __future__ import annotations

import json
import math
import re
import shutil
from itertools import product
from pathlib import Path
from random import Random

import pytest
import torch
from torch.nn import functional as F

from visalign.rewards.encoders import dual_encoder
from visalign.rewards.heads import load_head
from visalign.rewards.judge import Question
from visalign.rewards.local_judge import LocalJudge
from visalign.shapes import JUDGES
from visalign.shapes.judges import clip as clips
from visalign.shapes.judges import heads
from visalign.shapes.judges.conversations import Batches, Row, collate
from visalign.shapes.judges.damage import KINDS, LEAST, damage, draw_damage, vary
from visalign.shapes.judges.data import alter, draw_description, draw_scenes, held_out, said, shown, truth
from visalign.shapes.judges.faults import FAULTY, Samples, unexplained
from visalign.shapes.judges.learning import Trainer
from visalign.shapes.judges.metrics import auroc, binary, calibration_error, spearman
from visalign.shapes.judges.questions import draw_claim, look, put, statements
from visalign.shapes.judges.recipes import ClipRecipe, HeadRecipe, Schedule, VlmRecipe, load_recipe
from visalign.shapes.judges.training import train_recipe
from visalign.shapes.judges.vlm import branch_logits, build_processor, build_vlm, eyes_of, vlm_loss
from visalign.shapes.judges.words import build_words
from visalign.shapes.render import render
from visalign.shapes.scenes import Clause, Description, place
from visalign.shapes.verifier import verify

SCHEDULE = {
    "steps": 3,
    "batch": 6,
    "learning_rate": 1e-3,
    "warmup": 2,
    "ema_decay": 0.9,
    "autocast": False,
    "save_every": 2,
}
SMALL = {
    "schedule": SCHEDULE,
    "samples": {"model": "sd3", "count": 2, "steps": (1, 2)},
    "tests": 6,
}
TOWER = {"width": 16, "layers": 2, "heads": 2}


def small(name, **changes):
    return type(load_recipe(name)).model_validate(load_recipe(name).model_dump() | SMALL | changes)


CLIP: ClipRecipe = small("clip", embed=16, vision=TOWER, text=TOWER, faults=2)
VLM: VlmRecipe = small("vlm", text=TOWER, feed_forward=32, room=60)
HEADS: dict[str, HeadRecipe] = {n: small(n, hidden=(8,), pictures=12) for n in ("aesthetic", "artifact")}


class Stopped(Exception):
    pass


def ignore(stage, done, total, loss):
    pass


def stop_at(step):
    def progress(stage, done, total, loss):
        if done == step:
            raise Stopped

    return progress


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    train_recipe(CLIP, folder, folder, resume=False, progress=ignore)
    return folder


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory, clip_folder) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    train_recipe(VLM, folder, clip_folder, resume=False, progress=ignore)
    return folder


@pytest.fixture(scope="module")
def samples() -> Samples:
    descriptions, scenes = draw_scenes(4, Random(0))
    pixels = render(scenes, 64, seed=0)
    return Samples(pixels, tuple(d.metadata() for d in descriptions), unexplained(pixels))


def pictures(count, seed=0):
    descriptions, scenes = draw_scenes(count, Random(seed))
    return descriptions, scenes, render(scenes, 64, seed)


# Captions and scenes


def test_a_changed_fact_makes_a_caption_wrong_and_never_a_held_out_one():
    rng = Random(0)
    descriptions = [draw_description(rng) for _ in range(300)]
    wrong = [alter(d, rng) for d in descriptions]
    pixels = render([place(d, rng) for d in descriptions], 64, seed=0)
    assert float(verify(pixels, [d.metadata() for d in wrong]).strict.max()) == 0
    assert not {d.caption for d in [*descriptions, *wrong]} & held_out()
    assert max(len(d.caption.split()) for d in wrong) <= 9


def test_the_truth_table_is_the_verifiers():
    descriptions, scenes, pixels = pictures(60)
    table = truth(shown(scenes), said(descriptions))
    assert table.diagonal().all()
    close = [(i, j) for i, j in product(range(60), repeat=2) if table[i, j] or (i + 7 * j) % 23 == 0]
    verdict = verify(pixels[[i for i, _ in close]], [descriptions[j].metadata() for _, j in close]).strict
    assert [bool(table[i, j]) for i, j in close] == (verdict == 1).tolist()
    assert table.sum() > 60


# Damage


def test_damage_is_seeded_grows_with_strength_and_leaves_clean_rows_alone():
    clean = pictures(len(KINDS) * 2)[2]
    kinds = torch.arange(len(KINDS)).repeat(2)
    weak, strong = (damage(clean, kinds, torch.full((len(kinds),), s), seed=1) for s in (LEAST, 1.0))
    assert torch.equal(weak, damage(clean, kinds, torch.full((len(kinds),), LEAST), seed=1))
    assert torch.equal(damage(clean, torch.full_like(kinds, -1), torch.zeros(len(kinds)), seed=1), clean)
    change = [(d - clean).abs().mean(dim=(1, 2, 3)).view(2, -1).mean(dim=0) for d in (weak, strong)]
    assert (change[0] > 0).all()
    assert (change[1] > change[0]).all()
    assert 0 <= float(strong.min()) <= float(strong.max()) <= 1


def test_damage_comes_as_often_as_it_says():
    kinds, strength = draw_damage(4000, 0.4, seed=0)
    assert float((kinds >= 0).float().mean()) == pytest.approx(0.4, abs=0.03)
    assert ((strength > 0) == (kinds >= 0)).all()
    assert LEAST <= float(strength[kinds >= 0].min()) <= float(strength.max()) <= 1


def test_scenes_explain_clean_renders_and_no_damage():
    clean = vary(pictures(200)[2], seed=1)
    kinds, strength = draw_damage(200, 1.0, seed=2)
    damaged = unexplained(damage(clean, kinds, strength, seed=3))
    assert float((unexplained(clean) <= FAULTY).float().mean()) >= 0.98
    assert float((damaged > FAULTY).float().mean()) >= 0.75
    assert auroc(torch.cat([unexplained(clean), damaged]), torch.arange(400) // 200) >= 0.93


# Figures


def test_auroc_and_rank_correlation_are_those_of_the_definition():
    draw = torch.Generator().manual_seed(0)
    score, label = (torch.randn(40, generator=draw) * 3).round(), (torch.rand(40, generator=draw) > 0.6).float()
    pairs = [(a, b) for a, b in product(range(40), repeat=2) if label[a] > label[b]]
    wins = [1.0 if score[a] > score[b] else 0.5 if score[a] == score[b] else 0.0 for a, b in pairs]
    assert auroc(score, label) == pytest.approx(sum(wins) / len(wins))
    stats = pytest.importorskip("scipy.stats")
    other = torch.randn(40, generator=draw)
    assert spearman(score, other) == pytest.approx(stats.spearmanr(score, other).statistic)
    assert math.isnan(auroc(score, torch.ones(40)))


def test_calibration_is_the_mean_gap_of_the_bins():
    said_true, came_true = torch.tensor([0.05, 0.05, 0.95, 0.95]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert calibration_error(said_true, came_true) == pytest.approx((2 * 0.45 + 2 * 0.05) / 4)
    assert binary(said_true, came_true)["accuracy"] == 0.75


# The CLIP


def test_the_contrastive_loss_lets_true_captions_of_others_pass():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.5, 3.0, 1.0]])
    true = torch.tensor([[True, False, False], [True, True, False]])
    rows = -2 + math.log(math.exp(2) + math.exp(1) + 1), -3 + math.log(math.exp(3) + math.exp(1))
    columns = 0.0, -3 + math.log(math.exp(1) + math.exp(3))
    expected = (sum(rows) / 2 + sum(columns) / 2) / 2
    assert float(clips.contrastive_loss(logits, true)) == pytest.approx(expected, abs=1e-5)


def test_judgement_looks_at_a_rows_own_wrong_captions():
    logits = torch.zeros(2, 6)
    logits[0, [0, 2, 3]] = torch.tensor([1.0, -1.0, -2.0])
    logits[1, [1, 4, 5]] = torch.tensor([2.0, 0.5, -0.5])
    right = sum(F.softplus(torch.tensor(-v)) for v in (1.0, 2.0)) / 2
    wrong = sum(F.softplus(torch.tensor(v)) for v in (-1.0, -2.0, 0.5, -0.5)) / 4
    assert torch.allclose(clips.judgement_loss(logits, negatives=2), (right + wrong) / 2)


def test_batches_are_made_of_their_number_alone(samples):
    one, same, other = (clips.Batches(CLIP, samples)(step) for step in (3, 3, 4))
    assert torch.equal(one.pixels, same.pixels)
    assert torch.equal(one.tokens, same.tokens)
    assert not torch.equal(one.tokens, other.tokens)
    assert one.pixels.shape == (8, 3, 64, 64)
    assert one.tokens.shape == (18, 12)
    assert one.true[:, :6].diagonal().all()
    for row in range(6):
        assert not one.true[row, 6 + 2 * row : 8 + 2 * row].any()


def test_the_clip_learns(samples):
    recipe = small("clip", embed=16, vision=TOWER, text=TOWER, faults=2, schedule=SCHEDULE | {"learning_rate": 5e-3})
    learner, batch = clips.Learner(recipe), clips.Batches(recipe, samples)(0)
    trainer = Trainer(learner, Schedule(**SCHEDULE | {"steps": 25, "learning_rate": 5e-3}))
    losses = [trainer.train_step(lambda step: clips.clip_loss(learner, batch, recipe)) for _ in range(25)]
    assert losses[-1] < 0.6 * losses[0]


def test_the_clip_folder_loads_anywhere_and_with_gradients(clip_folder, tmp_path):
    moved = Path(shutil.copytree(clip_folder, tmp_path / "elsewhere"))
    encoder = dual_encoder(str(moved))
    descriptions, _, pixels = pictures(4)
    pixels.requires_grad_(True)
    embeddings = encoder.images(pixels)
    clip = clips.load_clip(clip_folder)
    assert torch.allclose(embeddings, clips.embed_images(clip, pixels), atol=1e-5)
    captions = tuple(d.caption for d in descriptions)
    cosine, probability = clips.judge(clip, pixels.detach(), captions)
    assert torch.allclose((embeddings * encoder.texts(captions, pixels.device)).sum(1), cosine, atol=1e-5)
    assert torch.allclose(probability, (encoder.logit_scale * cosine + clip.logit_bias).sigmoid(), atol=1e-5)
    embeddings.sum().backward()
    assert float(pixels.grad.abs().sum()) > 0


# The heads


@pytest.mark.parametrize("name", HEADS)
def test_a_head_gives_the_same_values_to_the_rewards(name, clip_folder, tmp_path):
    train_recipe(HEADS[name], tmp_path, clip_folder, resume=False, progress=ignore)
    clip, pixels = clips.load_clip(clip_folder), pictures(4)[2]
    values, (low, high) = heads.judge(clip, tmp_path, pixels), HEADS[name].range
    assert torch.allclose(load_head(tmp_path)(clips.embed_images(clip, pixels)), values, atol=1e-5)
    assert low <= float(values.min()) <= float(values.max()) <= high
    assert "samples" in json.loads((tmp_path / "measured.json").read_text())


def test_targets_are_what_the_heads_mean():
    strength, flawed = torch.tensor([0.0, 0.4, 1.0]), torch.tensor([0.0, 1.0, 1.0])
    assert torch.equal(heads.TARGETS["aesthetic"](strength, flawed), 1 - strength)
    assert torch.equal(heads.TARGETS["artifact"](strength, flawed), flawed)


# The vision-language model


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
    prefix = words("<bos><user>" + "<image>" * 64).input_ids
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
    batches = Batches(VLM, words, samples, tokens=64)
    row = batches._row(
        [look(d, place(d, Random(0)), 0.0) for d in [draw_description(Random(0))]], batches.groups[1], Random(1)
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


def test_the_vlm_learns(clip_folder, samples, words):
    clip = clips.load_clip(clip_folder)
    vlm, batch = build_vlm(VLM, clip, len(words)), Batches(VLM, words, samples, tokens=64)(0)
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


# Recipes and runs


@pytest.mark.parametrize("name", JUDGES)
def test_every_recipe_loads(name):
    assert load_recipe(name).name == name


def test_unknown_judges_and_keys_are_refused():
    with pytest.raises(ValueError, match="unknown shapes judge 'clop'; write one of clip, aesthetic"):
        load_recipe("clop")
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        small("clip", colour=1)


def test_a_stopped_training_ends_with_the_same_weights(clip_folder, tmp_path):
    for step in (1, 2):
        with pytest.raises(Stopped):
            train_recipe(CLIP, tmp_path, tmp_path, resume=True, progress=stop_at(step))
    train_recipe(CLIP, tmp_path, tmp_path, resume=True, progress=ignore)
    one, other = (f / "open_clip_model.safetensors" for f in (clip_folder, tmp_path))
    assert one.read_bytes() == other.read_bytes()
    assert not (tmp_path / "training").exists()
    assert json.loads((tmp_path / "recipe.json").read_text())["recipe"]["seed"] == CLIP.seed
    assert "| renders |" in (tmp_path / "README.md").read_text()


def test_an_unfinished_training_is_not_overwritten(tmp_path):
    (tmp_path / "training").mkdir()
    with pytest.raises(ValueError, match="holds an unfinished training; go on with resume=True"):
        train_recipe(CLIP, tmp_path, tmp_path, resume=False, progress=ignore)
