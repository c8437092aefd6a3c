"""The shipped contract on every tiny pipeline."""

import pytest
import torch

from tests.pipelines.cases import controlled, same_state, state_of
from tests.tiny import CASES
from visalign.pipelines.check import check_pipeline

# What may not apply, by case; everything else must pass everywhere.
BRANCH, STEP = "resume at a stored state", "levels explain the scheduler's step"
ROWS, ENCODE = "timesteps per sample", "decode after encode"
STATEFUL = {BRANCH, STEP}
SKIPPED = {
    "cogvideox_dpm": STATEFUL,
    "lcm": STATEFUL,
    "pixart_sigma_dpm": STATEFUL,
    "sana_dpm": STATEFUL,
    "wan_unipc": STATEFUL,
    "wan21_i2v": STATEFUL,
    "wan22": STATEFUL | {ROWS},
    "wan_ti2v": STATEFUL | {ROWS},
    "wan_ti2v_image": STATEFUL | {ROWS, ENCODE},
    "kandinsky5": {ROWS},
    "ltx2": {ENCODE},
}
FROM_IMAGE = ("img2img", "inpaint", "flux_fill")


@pytest.mark.parametrize("name", CASES)
def test_contract(name):
    pipeline, conditioning, num_steps = controlled(name)
    pipe, scheduler = state_of(pipeline.pipe), state_of(pipeline.pipe.scheduler)
    report = check_pipeline(pipeline, conditioning, num_steps=num_steps)
    expected = SKIPPED.get(name, set()) | ({ROWS} if any(part in name for part in FROM_IMAGE) else set())
    assert set(report.skipped) == expected, report.skipped
    assert same_state(pipe, pipeline.pipe)
    assert same_state(scheduler, pipeline.pipe.scheduler)
    assert not any("lora_" in key for d in pipeline.denoisers.values() for key in d.state_dict())


@pytest.mark.parametrize("name", ["sd3_text", "sd15_euler", "flux", "qwen_image", "z_image", "wan", "ltx_i2v"])
def test_contract_in_bfloat16(name):
    pipeline, conditioning, num_steps = controlled(name, torch.bfloat16)
    assert not check_pipeline(pipeline, conditioning, num_steps=num_steps).skipped


def test_contract_notices_a_pipeline_that_does_not_keep_it(monkeypatch):
    pipeline, conditioning, num_steps = controlled("sd3")
    decode = pipeline.pipe.vae.decode
    monkeypatch.setattr(pipeline.pipe.vae, "decode", lambda z, **k: [decode(z, **k)[0].detach()])
    with pytest.raises(AssertionError, match="gradient through decode: the graph is cut"):
        check_pipeline(pipeline, conditioning, num_steps=num_steps)
