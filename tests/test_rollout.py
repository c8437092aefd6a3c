"""Windows, noise and the recording rule."""

import pytest
import torch

from visalign.rollout import Recorder, RolloutConfig, Window, draw, row_seed, stochastic_kernel
from visalign.types import InputError


def test_windows():
    assert Window().steps(8, 0, 0) == tuple(range(7))
    assert Window(size=2, high=5, move="fixed").steps(8, 9, 0) == (0, 1)
    moves = [Window(size=2, move="progressive", every=2).steps(6, i, 0) for i in range(10)]
    assert moves[:4] == [(0, 1), (0, 1), (1, 2), (1, 2)]
    assert moves[8] == (0, 1)
    drawn = {Window(size=2, high=5).steps(8, i, 0) for i in range(60)}
    assert drawn == {(0, 1), (1, 2), (2, 3), (3, 4)}


def test_the_window_is_a_function_of_iteration_and_seed():
    window = Window(size=2)
    assert window.steps(10, 4, 1) == window.steps(10, 4, 1)
    assert len({window.steps(10, i, 1) for i in range(20)}) > 1


def test_a_fraction_of_the_steps_is_trained():
    trained = Window(fraction=0.6).trained(range(10), 3, 0)
    assert len(trained) == 6
    assert trained == tuple(sorted(trained))


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"rollout\.window\.size"):
        Window(size=9).steps(8, 0, 0)


def test_noise_of_a_row_depends_on_its_seed_and_step_alone():
    together, alone = draw([1, 2, 3], 4, (2, 5)), draw([2], 4, (2, 5))
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(draw([2], 5, (2, 5)), alone)
    assert row_seed(0, "steps/1", 77, 2) == row_seed(0, "steps/1", 77, 2)
    assert len({row_seed(0, "steps/1", p, m) for p in range(50) for m in range(50)}) == 2500


def test_noise_is_standard_normal():
    noise = draw(range(2000), 0, (16,))
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float((noise[1:] * noise[:-1]).mean()) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("kernel", "eta"), [("ode", 0.7), ("cps", 0.0), ("flow_sde", 0.0)])
def test_deterministic_kernels_have_no_log_probability(kernel, eta):
    with pytest.raises(InputError, match="cps, flow_sde"):
        stochastic_kernel(RolloutConfig(kernel=kernel, eta=eta))


def test_recorded_states_pass_through_the_storage_dtype():
    from tests.tiny import build
    from visalign.pipelines.pipeline import Pipeline
    from visalign.types import Conditioning, Prompts

    case = build("sd3")
    pipeline = Pipeline(case.pipe)
    rule = Recorder(
        RolloutConfig(num_steps=3, kernel="cps"), (0, 1), (1,), [5, 6], storage=torch.bfloat16, keep_mean=True
    )
    conditioning = Conditioning(Prompts(("a", "b")), case.guidance_scale, case.call, case.tensors)
    with torch.no_grad():
        pipeline.rollout(conditioning, [1, 2], 3, rule)
    (step,) = rule.steps
    assert step.index == 1
    assert torch.equal(step.x_next, step.x_next.to(torch.bfloat16).float())
    assert step.mean is not None
