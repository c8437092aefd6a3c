"""ReNO: its regularisers, its fixed point in closed form, its gradient through any number of steps, its bookkeeping."""

import itertools
import math

import pytest
import torch

from tests.pipelines.cases import controlled
from visalign.config import RewardEntry
from visalign.optimizing import optimize, replay
from visalign.rewards.base import Reward, RewardSpec
from visalign.scoring import RewardBank
from visalign.search.base import Problem, Sampler, run
from visalign.search.noise import chi_penalty, clip_rows, concentration_penalty, nesterov
from visalign.search.record import read_search
from visalign.search.reno import ReNO, ReNOConfig
from visalign.search.sampler import PipelineSampler, checkpointed
from visalign.search.state import Budget, Ledger, State
from visalign.types import InputError, Media, Prompts, RunError, Scores

SIDE = 4
D = 3 * SIDE * SIDE
TURN = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1)))[0]
GOAL = torch.randn(D, generator=torch.Generator().manual_seed(2))
STRENGTH = 0.7


class Quadratic(Reward):
    """−½‖x − goal‖² of the pixels; rows of prompts that say nothing are not judged."""

    spec = RewardSpec(name="quadratic", differentiable=True)

    def score(self, media, prompts):
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media, prompts):
        values = -0.5 * (media.pixels.flatten(1) - GOAL).square().sum(1)
        return Scores(values, valid=torch.tensor([text != "nothing" for text in prompts]))


class Peak(Reward):
    """Rises with the first pixel up to a bound, then falls steeply."""

    spec = RewardSpec(name="peak", differentiable=True)

    def score(self, media, prompts):
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media, prompts):
        first = media.pixels.flatten(1)[:, 0]
        return Scores(torch.where(first < 3, first, first.detach() * 0 - 9 + 1e-3 * first))


class Linear(Sampler):
    """x = s·Q·ε with Q orthogonal, in two steps that cost nothing."""

    def __init__(self, prompts=("a",), bend=0.0):
        self.prompts, self.calls, self.bend = Prompts(prompts), 2, bend

    def noise(self, prompts, seeds):
        return torch.stack([torch.randn(D, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def media(self, prompts, seeds, noise, *, grad, checkpoint):
        noise = self.noise(prompts, seeds) if noise is None else noise
        pixels = STRENGTH * noise @ TURN.T
        return Media(pixels.view(-1, 1, 3, SIDE, SIDE))


def bank(name="Quadratic", weight=1.0):
    return RewardBank({f"tests.search.test_reno:{name}": RewardEntry(weight=weight)})


def problem(sampler=None, rewards=None, batch=8, **limits):
    sampler = sampler or Linear()
    return Problem(sampler, rewards or bank(), Budget(**limits), range(len(sampler.prompts)), batch=batch)


def reno(**options):
    return ReNO(ReNOConfig(**{"clip": 1e9, "lr": 0.1, **options}))


def test_the_norms_penalty_is_flat_at_its_minimum_and_pushes_back_on_both_sides():
    direction = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    direction = direction / direction.norm()
    radius = math.sqrt(4 * 8 * 8 - 1)
    push = []
    for scale in (0.9, 1.0, 1.1):
        noise = (scale * radius * direction).float().requires_grad_()
        push.append(float((torch.autograd.grad(chi_penalty(noise).sum(), noise)[0] * direction).sum()))
    assert push[0] < -1
    assert abs(push[1]) < 1e-4
    assert push[2] > 1


def test_the_norms_penalty_is_minus_the_log_density_of_a_gaussians_norm():
    radii = torch.tensor([10.0, 15.0, 16.0, 21.0])
    noise = torch.zeros(4, 256)
    noise[:, 7] = radii
    squared = torch.distributions.Chi2(256.0)
    log_density = squared.log_prob(radii.square()) + (2 * radii).log()  # of the norm, by change of variables
    found = chi_penalty(noise)
    assert torch.allclose(found - found[0], log_density[0] - log_density, atol=2e-3)


def test_independence_is_free_for_noise_and_costs_for_structure():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 4096, generator=generator)
    orders = torch.stack([torch.randperm(4096, generator=generator) for _ in range(10)])
    none = torch.empty(0, 4096, dtype=torch.long)
    free = 2 * math.log(2)  # two bounds in the given order, and two in permuted ones
    assert (concentration_penalty(noise, none) == torch.tensor(free)).float().mean() > 0.5
    leaf = noise.clone().requires_grad_()
    found = concentration_penalty(leaf, orders)
    assert found.min() >= 2 * free - 1e-5
    assert found.max() < 2 * free + 2
    assert torch.autograd.grad(found.sum(), leaf)[0].norm(dim=1).max() < 2  # of noise whose norm is 64
    structured = {
        "constant": torch.ones(4096),
        "tiled": noise[0, :4].repeat(1024),
        "sorted": noise[0].sort().values,
        "smooth": 3 * torch.nn.functional.avg_pool1d(noise[:1, None], 9, 1, 4).flatten(),
    }
    costs = {name: float(concentration_penalty(v[None], orders)) for name, v in structured.items()}
    assert min(costs.values()) > 2 * free + 10
    permuted = costs["sorted"] - float(concentration_penalty(structured["sorted"][None], none))
    assert permuted == pytest.approx(free, abs=1)  # in other orders it is noise again


def test_steps_are_those_of_torchs_sgd():
    leaf = torch.zeros(2, 5).requires_grad_()
    optimiser = torch.optim.SGD([leaf], lr=0.3, momentum=0.9, nesterov=True)
    noise, velocity = torch.zeros(2, 5), torch.zeros(2, 5)
    for seed in range(4):
        leaf.grad = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed))
        noise, velocity = nesterov(noise, leaf.grad, velocity, 0.3, 0.9)
        optimiser.step()
        assert torch.allclose(noise, leaf.detach(), atol=1e-6)


def test_each_row_is_clipped_by_itself():
    gradient = torch.tensor([[[30.0, 40.0]], [[0.03, 0.04]], [[0.0, 0.0]]])
    assert torch.allclose(clip_rows(gradient, 0.1).flatten(1).norm(dim=1), torch.tensor([0.1, 0.05, 0.0]))


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_linear_generator_and_a_quadratic_reward_end_at_their_fixed_point(weight):
    work = problem(candidates=400)
    *_, last = run(reno(norm_weight=weight), work)
    # ε = t·Qᵀg/‖g‖ with (s² + w)·t² − s·‖g‖·t − w·(d − 1) = 0.
    a, b, c = STRENGTH**2 + weight, -STRENGTH * float(GOAL.norm()), -weight * (D - 1)
    t = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    assert torch.allclose(last.noise[0], t * TURN.T @ GOAL / GOAL.norm(), atol=1e-3)


def test_all_chains_and_prompts_get_there_in_any_batch():
    results = []
    for batch in (2, 8):
        work = problem(Linear(("a", "b")), batch=batch, candidates=40)
        *_, last = run(reno(chains=3, norm_weight=0.1), work)
        assert last.prompts.tolist() == [0, 0, 0, 1, 1, 1]
        assert last.seeds.tolist() == [0, 1, 2] * 2
        results.append(last.noise)
    assert torch.allclose(*results, atol=1e-5)


def test_nothing_moves_when_all_weights_are_zero():
    states = list(run(reno(norm_weight=0.0), problem(rewards=bank(weight=0.0), candidates=3)))
    assert len(states) == 3
    assert all(torch.equal(state.noise, states[0].noise) for state in states)


def test_the_best_iterate_is_by_the_reward_alone_and_need_not_be_the_last():
    work = problem(rewards=bank("Peak"), candidates=30)
    states = list(run(reno(lr=0.5, momentum=0.0, norm_weight=1.0), work))
    values = torch.cat([state.values for state in states])
    first = torch.cat([STRENGTH * state.noise @ TURN.T for state in states])[:, 0]
    assert torch.allclose(values[first < 3], first[first < 3], atol=1e-5)  # no penalty in it
    assert int(values.argmax()) < len(values) - 1


def test_a_step_is_no_longer_than_lr_and_clip_allow():
    states = list(run(ReNO(ReNOConfig()), problem(candidates=12)))
    moves = [float((b.noise - a.noise).norm()) for a, b in itertools.pairwise(states)]
    assert moves[0] == pytest.approx(5.0 * 0.1 * 1.9, rel=1e-4)  # Nesterov's first step is (1 + momentum)·lr·g
    assert max(moves) <= 5.0 * 0.1 / (1 - 0.9)


def test_iterates_are_a_chain_of_parents_from_the_noise_of_the_seed():
    work = problem(candidates=4)
    states = list(run(reno(chains=2), work))
    assert [state.ids.tolist() for state in states] == [[0, 1], [2, 3]]
    assert [state.parents.tolist() for state in states] == [[-1, -1], [0, 1]]
    assert torch.equal(states[0].noise, work.sampler.noise([0, 0], [0, 1]))


@pytest.mark.parametrize(("checkpoint", "gradient"), [(True, 8), (False, 6)])
def test_a_budget_of_model_calls_is_kept_and_its_last_look_has_no_gradient(checkpoint, gradient):
    work = problem(model_calls=3 * gradient + 3)
    states = list(run(reno(checkpoint=checkpoint), work))
    assert [int(state.model_calls) for state in states] == [k * gradient + 2 for k in range(4)]
    ledger = work.ledger
    assert (ledger.backwards, ledger.decode_backwards, ledger.reward_backwards) == (6, 3, 3)
    assert (ledger.forwards, ledger.candidates) == (2 * (7 if checkpoint else 4), 4)


def test_seconds_end_a_search_too():
    assert len(list(run(reno(), problem(seconds=1e-9)))) == 1


def test_a_budget_below_one_step_says_what_is_needed():
    with pytest.raises(InputError, match="at least 4 model calls and 2 candidates"):
        list(run(reno(chains=2), problem(model_calls=3)))


def test_a_row_that_is_not_judged_has_no_value():
    states = list(run(reno(), problem(Linear(("nothing", "a")), candidates=2)))
    assert states[0].values[0] == -math.inf
    assert states[0].values[1].isfinite()
    assert states[0].components["tests.search.test_reno:Quadratic"][0].isnan()


def test_a_gradient_that_is_not_finite_is_an_error():
    class Broken(Linear):
        def media(self, *arguments, **options):
            pixels = super().media(*arguments, **options).pixels
            return Media(pixels + 0 * (pixels - pixels.detach()).abs().sqrt())  # √ has no slope at 0

    with pytest.raises(RunError, match="not finite for the prompt 'a'"):
        list(run(reno(), problem(Broken(), candidates=3)))


def test_a_state_is_gathered_whole():
    state = State.fresh([0, 0, 1], [5, 6, 7])
    noise = torch.arange(3.0).view(3, 1)
    media = Media(noise.view(3, 1, 1, 1, 1).expand(3, 1, 3, 2, 2))
    whole = State(
        **{**vars(state), "noise": noise, "media": media, "own": {"v": 10 * noise}, "components": {"r": noise[:, 0]}}
    )
    turned = whole.take([2, 0, 2])
    assert turned.prompts.tolist() == [1, 0, 1]
    assert turned.seeds.tolist() == [7, 5, 7]
    found = (turned.noise[:, 0], turned.media.pixels[:, 0, 0, 0, 0], turned.own["v"][:, 0] / 10, turned.components["r"])
    assert all(v.tolist() == [2, 0, 2] for v in found)
    again = State.join([whole.take([0]), whole.take([1, 2])])
    assert torch.equal(again.noise, noise)
    assert torch.equal(again.media.pixels, media.pixels)
    assert all(len(v) == 3 for v in vars(again).values() if isinstance(v, torch.Tensor))


def test_ledgers_add_up():
    one, two = Ledger(), Ledger()
    one.spend(2, 4)
    two.spend(1, 4, grad=True, repeat=True)
    both = one.plus(two)
    assert (both.forwards, both.backwards, both.candidates, both.batches) == (16, 4, 3, 2)
    assert both.model_calls == 24


def sampled(name, num_steps=None):
    pipeline, conditioning, own = controlled(name)
    return PipelineSampler(pipeline, conditioning, num_steps or own)


def pixel_gradient(sampler, noise, checkpoint):
    leaf = noise.clone().requires_grad_()
    with torch.enable_grad():
        media = sampler.media([0, 1], [3, 4], leaf, grad=True, checkpoint=checkpoint)
    value = (media.pixels * torch.linspace(-1, 1, media.pixels[0].numel()).view(media.pixels[0].shape)).mean()
    return media.pixels.detach(), float(value.detach()), torch.autograd.grad(value, leaf)[0]


# A flow, two denoisers with a multistep solver, and a loop that writes its next state into the denoiser's input.
@pytest.mark.parametrize("name", ["sd3", "wan22", "kandinsky5"])
def test_gradients_with_checkpointing_are_the_plain_ones(name):
    sampler = sampled(name)
    noise = sampler.noise([0, 1], [3, 4])
    pixels, _, plain = pixel_gradient(sampler, noise, checkpoint=False)
    again, _, cheap = pixel_gradient(sampler, noise, checkpoint=True)
    assert torch.equal(pixels, again)
    assert torch.equal(plain, cheap)
    assert plain.flatten(1).norm(dim=1).min() > 0
    assert all("forward" not in vars(module) for module in sampler.pipeline.denoisers.values())


@pytest.mark.parametrize("num_steps", [1, 4])
def test_gradients_through_so_many_steps_are_finite_differences(num_steps):
    sampler = sampled("sd3", num_steps)
    noise = sampler.noise([0, 1], [3, 4])
    gradient = pixel_gradient(sampler, noise, checkpoint=True)[2]
    direction = gradient / gradient.norm()
    ahead, behind = (pixel_gradient(sampler, noise + h * direction, checkpoint=True)[1] for h in (0.05, -0.05))
    assert (ahead - behind) / 0.1 == pytest.approx(float(gradient.norm()), rel=0.02)


def test_activations_of_the_denoiser_are_not_kept():
    def held(num_steps, checkpoint):
        sampler, sizes = sampled("sd3", num_steps), []
        noise = sampler.noise([0, 1], [3, 4]).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            sampler.media([0, 1], [3, 4], noise, grad=True, checkpoint=checkpoint)
        return sum(sizes)

    per_step = [(held(5, checkpoint) - held(1, checkpoint)) / 4 for checkpoint in (True, False)]
    assert per_step[0] < 0.1 * per_step[1]


def test_an_own_forward_of_a_module_comes_back():
    module = torch.nn.Linear(2, 2)
    mine = vars(module)["forward"] = module.forward
    with checkpointed([module]):
        assert vars(module)["forward"] is not mine
    assert vars(module)["forward"] is mine


@pytest.mark.parametrize("name", ["wan", "sd15_euler"])
def test_latents_of_any_kind_are_moved(name):
    """A video, and a variance-exploding scheduler whose initial state is not of variance 1."""
    sampler = sampled(name)
    rewards = RewardBank({"tests.search.test_reno:Bright": RewardEntry()})
    work = Problem(sampler, rewards, Budget(candidates=3), (0, 1), seed=3)
    states = list(run(ReNO(ReNOConfig(lr=1.0, clip=1.0)), work))
    plain = sampler.pipeline.rollout(sampler.conditioning, [3, 3], sampler.num_steps).media.pixels
    assert torch.allclose(states[0].media.pixels, plain, atol=1e-5)
    assert 0.7 < float(states[0].noise.std()) < 1.3
    assert (states[-1].values > states[0].values).all()
    assert states[-1].media.pixels.shape == plain.shape


class Bright(Reward):
    """Mean brightness of a frame."""

    spec = RewardSpec(name="bright", differentiable=True)

    def score(self, media, prompts):
        with torch.no_grad():
            return self.score_with_grad(media, prompts)

    def score_with_grad(self, media, prompts):
        return Scores(media.pixels.mean((1, 2, 3, 4)))


def test_a_run_that_starts_from_a_picture_is_refused():
    sampler = sampled("ltx_i2v")
    with pytest.raises(InputError, match="starts from a state of variance"):
        sampler.noise([0, 1], [3, 4])


def test_iterates_are_made_again_to_the_bit(tmp_path):
    pipeline, conditioning, num_steps = controlled("sd3_text")
    method = {"name": "reno", "chains": 2, "lr": 1.0, "clip": 1.0}
    result = optimize(
        conditioning.prompts, pipeline, "tests.search.test_reno:Bright", method, {"candidates": 6}, out=tmp_path / "o",
        num_steps=num_steps, guidance_scale=2.0, call=conditioning.call, batch=3,
    )  # fmt: skip
    best = result.outcome.best
    assert (best.values > result.outcome.first.values).all()
    for prompt in (0, 1):
        again = replay(tmp_path / "o", prompt, pipeline=pipeline)
        assert torch.equal(again.pixels[0], result.media.pixels[prompt])
    parents = {(v["prompt"], v["candidate"]): v["parent"] for v in read_search(tmp_path / "o").lines}
    assert parents == {(p, c): None if c < 2 else c - 2 for p in (0, 1) for c in range(6)}
