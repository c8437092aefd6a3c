from __future__ import annotations

import json
import math
import shutil
from itertools import product
from pathlib import Path
from random import Random

import pytest
import torch
from torch.nn import functional as F

from tests.shapes.tiny_judges import CLIP, HEADS, SCHEDULE, TOWER, ignore, pictures, small
from visalign.rewards.encoders import dual_encoder
from visalign.rewards.heads import load_head
from visalign.shapes import JUDGES
from visalign.shapes.judges import clip as clips
from visalign.shapes.judges import heads
from visalign.shapes.judges.damage import KINDS, LEAST, damage, draw_damage, vary
from visalign.shapes.judges.data import alter, draw_description, held_out, said, shown, truth
from visalign.shapes.judges.faults import FAULTY, unexplained
from visalign.shapes.judges.learning import Ahead, Place, Trainer
from visalign.shapes.judges.metrics import auroc, binary, calibration_error, spearman
from visalign.shapes.judges.recipes import Schedule, load_recipe
from visalign.shapes.judges.training import train_recipe
from visalign.shapes.render import render
from visalign.shapes.scenes import place
from visalign.shapes.verifier import verify


class Stopped(Exception):
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


def _squared(step):
    return step * step


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_in_order_from_any_step_on(workers):
    ahead = Ahead(_squared, 6, workers)
    assert [ahead(step) for step in (2, 3, 0, 1, 4)] == [4, 9, 0, 1, 16]


def test_a_small_judge_is_trained_on_the_cpu_alone(tmp_path):
    with pytest.raises(ValueError, match="clip is trained on the CPU; only vlm takes a device and workers"):
        train_recipe(CLIP, tmp_path, tmp_path, resume=False, progress=ignore, place=Place("cuda"))
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_training_is_not_overwritten(tmp_path):
    (tmp_path / "training").mkdir()
    with pytest.raises(ValueError, match="holds an unfinished training; go on with resume=True"):
        train_recipe(CLIP, tmp_path, tmp_path, resume=False, progress=ignore)
