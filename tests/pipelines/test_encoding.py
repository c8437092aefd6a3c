"""Prompts are encoded once each, alone, and stacked as the pipeline would have."""

import pytest
import torch

from tests.pipelines.cases import close, controlled, counted
from visalign.pipelines.encoding import stacked
from visalign.types import Conditioning, InputError, Prompts, RunError


def of(texts, conditioning, guidance_scale=1.0, **call):
    return Conditioning(Prompts(tuple(texts)), guidance_scale, {**conditioning.call, **call})


def test_every_text_is_encoded_once():
    pipeline, conditioning, num_steps = controlled("sd15_text")
    calls = counted(pipeline.pipe.text_encoder)
    pipeline.rollout(of(["a red circle"] * 3 + ["a blue star"], conditioning), [0, 1, 2, 3], num_steps)
    assert len(calls) == 2
    run = pipeline.rollout(of(["a blue star", "a cat"], conditioning), [0, 1], num_steps)
    pipeline.decode(of(["a blue star", "a cat"], conditioning), run.final)
    assert len(calls) == 3


def test_guidance_and_negative_prompts_are_told_apart():
    pipeline, conditioning, num_steps = controlled("sd15_text")
    texts = ["a red circle", "a blue star"]
    finals = [
        pipeline.rollout(c, [0, 1], num_steps, decode=False).final
        for c in (
            of(texts, conditioning),
            of(texts, conditioning, 4.0),
            of(texts, conditioning, 4.0, negative_prompt="a cat"),
            of(texts, conditioning, 4.0, negative_prompt=["a cat", "a dog"]),
        )
    ]
    assert all(not close(a, b, 1e-3) for i, a in enumerate(finals) for b in finals[:i])


def test_an_embedding_does_not_depend_on_the_batch():
    pipeline, conditioning, num_steps = controlled("sd3_text")
    both = pipeline.rollout(of(["a cat", "a dog"], conditioning), [0, 1], num_steps).final
    alone = pipeline.rollout(of(["a dog"], conditioning), [1], num_steps).final
    assert close(alone, both[1:])


def test_text_encoders_can_leave_after_the_first_pass():
    pipeline, conditioning, num_steps = controlled("sd3_text")
    known = of(["a cat", "a dog"], conditioning, 2.0)
    before = pipeline.rollout(known, [0, 1], num_steps)
    pipeline.forget_text_encoders()
    assert pipeline.pipe.text_encoder is None
    assert pipeline.pipe.text_encoder_3 is None
    assert torch.equal(pipeline.rollout(known, [0, 1], num_steps).media.pixels, before.media.pixels)
    with pytest.raises(RunError, match=r"the prompt \['a star'\] was not encoded before"):
        pipeline.rollout(of(["a star"], conditioning), [0], num_steps)


def test_the_pipeline_keeps_its_own_method_afterwards():
    pipeline, conditioning, num_steps = controlled("sd15_text")
    pipeline.rollout(conditioning, [0, 1], num_steps)
    assert "encode_prompt" not in vars(pipeline.pipe)


def test_given_embeddings_are_not_encoded():
    pipeline, conditioning, num_steps = controlled("sd15_text")
    calls = counted(pipeline.pipe.text_encoder)
    embeds = torch.randn(2, 8, 32)
    given = Conditioning(conditioning.prompts, 1.0, conditioning.call, {"prompt_embeds": embeds})
    pipeline.rollout(given, [0, 1], num_steps)
    assert not calls


def test_sequences_of_unequal_length_are_padded_with_their_masks():
    rows = [(torch.ones(1, n, 2), torch.ones(1, n, dtype=torch.long), torch.ones(1, 5)) for n in (2, 4)]
    embeds, mask, pooled = stacked(rows)
    assert embeds.shape == (2, 4, 2)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert embeds[0, 2:].abs().sum() == 0
    assert pooled.shape == (2, 5)


def test_a_mask_that_was_left_out_is_made_where_padding_needs_it():
    embeds, mask = stacked([(torch.ones(1, n, 2), None) for n in (3, 1)])
    assert embeds.shape == (2, 3, 2)
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert stacked([(torch.ones(1, 3, 2), None)] * 2)[1] is None


def test_lists_are_joined_and_position_ids_shared():
    assert [len(e) for e in stacked([[torch.ones(2, 3)], [torch.ones(5, 3)]])] == [2, 5]
    ids = torch.zeros(7, 3)
    assert torch.equal(stacked([(torch.ones(1, 7, 2), ids)] * 2)[1], ids)
    with pytest.raises(InputError, match="not batch-first"):
        stacked([torch.zeros(2, 3), torch.ones(2, 3)])
