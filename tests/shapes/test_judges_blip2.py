"""`shapes/blip2`: what is trained is what `hummingbird` reads back."""

import json

import torch

from tests.shapes.tiny_judges import BLIP2, fall, ignore
from visalign.rewards.hummingbird import Hummingbird, best_query
from visalign.rewards.preprocess import Preprocess
from visalign.shapes.judges import blip2
from visalign.shapes.judges.preferences import Batches, padded
from visalign.shapes.judges.training import train_recipe
from visalign.types import Media, Prompts


def test_queries_differ_and_the_loss_falls_on_one_batch(teacher):
    learner, batch = blip2.Learner(BLIP2, 16), Batches(BLIP2)(0)
    assert float(torch.cdist(*2 * [learner.model.query_tokens[0]]).detach().max()) > 0.01
    assert fall(learner, BLIP2, lambda: blip2.blip2_loss(learner, batch, teacher, BLIP2), steps=40, rate=3e-3) > 0.1


def test_what_is_saved_scores_as_what_was_trained(tmp_path):
    learner, batch = blip2.Learner(BLIP2, 16), Batches(BLIP2)(0)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    blip2.save_blip2(learner.model.eval(), tmp_path)
    with torch.no_grad():
        found = learner.model(pixel_values=Preprocess(BLIP2.size, "squash")(batch.pixels), **padded(batch.captions))
    scores = Hummingbird(str(tmp_path)).score(Media.of_images(batch.pixels), Prompts(batch.captions))
    assert torch.allclose(scores.values, best_query(found.image_embeds, found.text_embeds), atol=1e-4)


def test_the_folder_is_measured_by_the_reward(tmp_path, shaken_clip):
    train_recipe(BLIP2, tmp_path, shaken_clip, resume=False, progress=ignore)
    table = json.loads((tmp_path / "measured.json").read_text())
    assert set(table) == {"renders", "damaged renders", "samples", "renders, two of a caption"}
