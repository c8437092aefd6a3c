"""The contract over the whole registry, and one broken reward for each promise."""

from random import Random

import pytest
import torch

from visalign import registry
from visalign.rewards.base import Reward, RewardSpec
from visalign.rewards.check import check_reward
from visalign.rewards.lifting import Lifted
from visalign.scoring import build_reward
from visalign.shapes.render import render
from visalign.shapes.scenes import CATEGORIES, describe, place
from visalign.types import Media, Prompts, Scores


def judged():
    """Pictures of the shapes world with their GenEval rows, and noise."""
    rng = Random(0)
    described = [describe(category, rng) for category in CATEGORIES]
    images = render([place(d, rng) for d in described], size=64, seed=0)
    images[-1] = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    rows = tuple(d.metadata() for d in described)
    return Media.of_images(images), Prompts(tuple(row["prompt"] for row in rows), rows)


PARAMS = {
    "shapes": [{}, {"graded": 0.0}, {"category": "counting"}],
    "sharpness": [{"cap": 1e6}],  # from the cap on it is flat
    "jpeg_size": [{}, {"direction": "incompress", "unit": "bits_per_pixel"}],
}


def plain(name):
    """Needs no weights, shipped or not, no columns but those of the built-in world, and no optional library."""
    spec = registry.load("rewards", name).spec
    return not (spec.weights or spec.tiny or spec.extra or set(spec.inputs) - {"prompt", "tag", "include"})


@pytest.mark.parametrize("name", filter(plain, registry.names("rewards")))
def test_registered_rewards(name):
    for params in PARAMS.get(name, [{}]):
        reward = build_reward(name, params)
        check_reward(reward, *judged())
        media, prompts = judged()
        video = Media(media.pixels.expand(-1, 3, -1, -1, -1), fps=8)
        check_reward(reward if "video" in reward.spec.media else Lifted(reward), video, prompts)


class Good(Reward):
    """Keeps every promise; the broken ones differ in one."""

    spec = RewardSpec(name="good", differentiable=True, range=(0.0, 1.0))

    def score(self, media, prompts):
        """Without gradients."""
        return Scores(media.images.detach().mean((1, 2, 3)))

    def score_with_grad(self, media, prompts):
        """With gradients."""
        return Scores(media.images.mean((1, 2, 3)))


def broken(message, spec=Good.spec, **methods):
    return pytest.param(type("Broken", (Good,), {"spec": spec, **methods}), message, id=message[:30])


def mean(media):
    return media.images.detach().mean((1, 2, 3))


def paints(self, media, prompts):
    scores = Scores(mean(media))
    media.pixels.detach().zero_()
    return scores


class Counter:
    calls = 0


def drifts(self, media, prompts):
    Counter.calls += 1
    return Scores(mean(media) * 0.9**Counter.calls)


PLAIN = RewardSpec(name="plain")
BROKEN = [
    broken("gave values (6,) torch.float64", score=lambda s, m, p: Scores(mean(m).double())),
    broken("gave values (6, 1) torch.float32", score=lambda s, m, p: Scores(mean(m)[:, None])),
    broken("gave part (1,) torch.float32", score=lambda s, m, p: Scores(mean(m), {"part": torch.zeros(1)})),
    broken("gave valid (6,) torch.float32", score=lambda s, m, p: Scores(mean(m), valid=torch.ones(6))),
    broken("with a gradient from score()", score=Good.score_with_grad),
    broken("could judge no row", score=lambda s, m, p: Scores(mean(m), valid=torch.zeros(6, dtype=torch.bool))),
    broken("gave values that are not finite", score=lambda s, m, p: Scores(mean(m) / 0)),
    broken("outside of its range [0.0, 1.0]", score=lambda s, m, p: Scores(mean(m) + 5)),
    broken("gave other values in a second call", score=drifts),
    broken("gave other values in row by row", score=lambda s, m, p: Scores(mean(m) / mean(m).max())),
    broken("judged other rows in row by row", score=lambda s, m, p: Scores(mean(m), valid=mean(m) >= mean(m).mean())),
    broken("gave other values in score_with_grad", score_with_grad=lambda s, m, p: Scores(m.images.amax((1, 2, 3)))),
    broken("its values carry no gradient", score_with_grad=Good.score),
    broken(
        "has a gradient that is not finite",
        score_with_grad=lambda s, m, p: Scores(mean(m) + (m.images * 0).sqrt().sum()),
    ),
    broken(
        "has a gradient of zero in 6 of 6",
        score_with_grad=lambda s, m, p: Scores(mean(m) + 0 * m.images.sum((1, 2, 3))),
    ),
    broken("has score_with_grad, but spec.differentiable is False", spec=PLAIN),
    broken("changed its input", score=paints),
]


@pytest.mark.parametrize(("kind", "message"), BROKEN)
def test_broken_rewards_are_found(kind, message):
    with pytest.raises(AssertionError) as caught:
        check_reward(kind(), *judged())
    assert message in str(caught.value)


def test_good_reward_passes():
    check_reward(Good(), *judged())


def test_groupwise_rewards_may_look_at_the_batch():
    spec = RewardSpec(name="grouped", kind="groupwise", differentiable=True)
    relative = {"spec": spec, "score": lambda s, m, p: Scores(mean(m) / mean(m).max())}
    grad = {"score_with_grad": lambda s, m, p: Scores(m.images.mean((1, 2, 3)) / mean(m).max())}
    check_reward(type("Grouped", (Good,), relative | grad)(), *judged())
