"""The bank: sums, labels, validity, micro-batches, gradients, video, and every way in which a reward can fail."""

import doctest
import sys
from types import ModuleType

import pytest
import torch

from visalign import scoring
from visalign.config import RewardEntry
from visalign.rewards.base import Reward, RewardSpec
from visalign.scoring import RewardBank, build_reward
from visalign.types import InputError, Media, Prompts, RunError, Scores


class Brightness(Reward):
    """Mean pixel value times a gain, differentiable, with parts."""

    spec = RewardSpec(name="brightness", differentiable=True)

    def __init__(self, gain: float = 1.0):
        self.gain = gain

    def score(self, media, prompts):
        """Without gradients."""
        return self.score_with_grad(media, prompts)

    def score_with_grad(self, media, prompts):
        """With gradients."""
        mean = media.images.mean((1, 2, 3))
        return Scores(self.gain * mean, {"mean": mean, "red": media.images[:, 0].mean((1, 2))})


class Grouped(Brightness):
    """Compares rows of the batch."""

    spec = RewardSpec(name="grouped", kind="groupwise")

    def score(self, media, prompts):
        """Distance to the brightest row."""
        mean = media.images.mean((1, 2, 3))
        return Scores(mean - mean.max())


class OnlyDark(Brightness):
    """Judges dark images only."""

    def score(self, media, prompts):
        """Invalid where bright."""
        mean = media.images.mean((1, 2, 3))
        return Scores(torch.where(mean < 0.5, mean, torch.nan), valid=mean < 0.5)


def brightness(images, prompts):
    return [image.convert("L").getpixel((0, 0)) / 255 for image in images]


@pytest.fixture(autouse=True)
def user_module(monkeypatch):
    """Rewards of a user, importable as `my_module`."""
    module = ModuleType("my_module")
    vars(module).update(
        Brightness=Brightness, Grouped=Grouped, OnlyDark=OnlyDark, brightness=brightness, NotAReward=Prompts, number=3
    )
    monkeypatch.setitem(sys.modules, "my_module", module)
    return module


MEDIA = Media.of_images(torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 3, 8, 8).clone())
PROMPTS = Prompts(tuple(f"prompt {i}" for i in range(6)))


def bank(*names, micro_batch=None, **entries):
    return RewardBank({n: RewardEntry() for n in names} | entries, micro_batch=micro_batch)


def test_weighted_sum_of_raw_values_with_every_part_beside_it():
    entries = {
        "my_module:Brightness": RewardEntry(weight=2.0, params={"gain": 10.0}),
        "my_module:brightness": RewardEntry(weight=-0.5),
    }
    scores = RewardBank(entries).score(MEDIA, PROMPTS)
    mean = torch.linspace(0, 1, 6)
    torch.testing.assert_close(scores.values, 20 * mean - 0.5 * mean, rtol=0, atol=1e-2)
    assert set(scores.components) == {
        "my_module:Brightness",
        "my_module:Brightness/mean",
        "my_module:Brightness/red",
        "my_module:brightness",
    }
    assert scores.values.dtype == torch.float32
    assert scores.valid.all()


def test_names_weights_and_specs_keep_the_order():
    rewards = RewardBank({"jpeg_size": RewardEntry(weight=0.3), "my_module:brightness": RewardEntry()})
    assert rewards.names == ("jpeg_size", "my_module:brightness")
    assert rewards.weights == {"jpeg_size": 0.3, "my_module:brightness": 1.0}
    assert rewards.specs["jpeg_size"].name == "jpeg_size"


def test_labels_give_one_reward_twice():
    entries = {f"my_module:Brightness#x{g}": RewardEntry(params={"gain": g}) for g in (1.0, 3.0)}
    scores = RewardBank(entries).score(MEDIA, PROMPTS)
    torch.testing.assert_close(
        scores.components["my_module:Brightness#x3.0"], 3 * scores.components["my_module:Brightness#x1.0"]
    )


def test_an_evaluation_leaves_out_what_compares_samples_of_a_prompt():
    both = bank("my_module:Grouped", "my_module:Brightness")
    scores = both.alone().score(MEDIA, PROMPTS)
    assert both.alone().names == ("my_module:Brightness",)
    assert "my_module:Grouped" not in scores.components
    torch.testing.assert_close(scores.values, scores.components["my_module:Brightness"])
    assert both.names == ("my_module:Grouped", "my_module:Brightness")
    with pytest.raises(InputError, match="add a reward that judges a sample by itself"):
        bank("my_module:Grouped").alone()


def test_empty_bank_scores_zero():
    scores = RewardBank({}).score(MEDIA, PROMPTS)
    assert scores.values.tolist() == [0.0] * 6
    assert scores.valid.all()


def test_a_row_is_valid_when_every_reward_could_judge_it():
    scores = bank("my_module:OnlyDark", "my_module:Brightness").score(MEDIA, PROMPTS)
    assert scores.valid.tolist() == [True] * 3 + [False] * 3
    assert (scores.values[3:] == 0).all()
    assert scores.components["my_module:OnlyDark"].isnan().tolist() == [False] * 3 + [True] * 3
    assert scores.components["my_module:Brightness"].isfinite().all()


@pytest.mark.parametrize("micro_batch", [1, 4, 6, 100])
def test_micro_batches_do_not_change_scores(micro_batch):
    names = ("my_module:Brightness", "my_module:brightness", "my_module:Grouped", "jpeg_size")
    whole, split = bank(*names).score(MEDIA, PROMPTS), bank(*names, micro_batch=micro_batch).score(MEDIA, PROMPTS)
    assert torch.equal(whole.values, split.values)
    for name, component in whole.components.items():
        assert torch.equal(component, split.components[name])


def test_scores_are_deterministic():
    names = ("my_module:brightness", "jpeg_size")
    assert torch.equal(bank(*names).score(MEDIA, PROMPTS).values, bank(*names).score(MEDIA, PROMPTS).values)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_gradients(micro_batch):
    entry = RewardEntry(weight=2.0, params={"gain": 3.0})
    pixels = MEDIA.pixels.clone().requires_grad_()
    rewards = RewardBank({"my_module:Brightness": entry}, micro_batch=micro_batch)
    scores = rewards.score_with_grad(Media(pixels), PROMPTS)
    scores.values.sum().backward()
    torch.testing.assert_close(pixels.grad, torch.full_like(pixels, 6.0 / (3 * 8 * 8)))
    assert not rewards.score(Media(pixels), PROMPTS).values.requires_grad


def test_without_gradient():
    with pytest.raises(InputError, match=r"'jpeg_size' has no gradient; use it with grpo"):
        bank("jpeg_size").score_with_grad(MEDIA, PROMPTS)


def test_image_rewards_see_videos_by_their_frames():
    video = Media(torch.linspace(0, 1, 11)[None, :, None, None, None].expand(2, 11, 3, 8, 8), fps=8)
    scores = bank("my_module:Brightness").score(video, PROMPTS.take([0, 1]))
    torch.testing.assert_close(scores.values, torch.full((2,), 0.5), rtol=0, atol=0.02)


def test_a_function_from_a_file_beside_the_script(tmp_path, monkeypatch):
    (tmp_path / "beside_the_script.py").write_text("def five(images, prompts):\n    return [5] * len(images)\n")
    monkeypatch.chdir(tmp_path)
    assert bank("beside_the_script:five").score(MEDIA, PROMPTS).values.tolist() == [5.0] * 6


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("jpeg_sise", {}, "unknown reward 'jpeg_sise'. Did you mean 'jpeg_size'"),
        ("jpeg_size", {"qualty": 3}, "reward 'jpeg_size' takes no parameter 'qualty'. Did you mean 'quality'"),
        ("my_module:brightness", {"gain": 3}, "takes no parameter 'gain'. It takes: none"),
        ("my_module:brightness", {"images": []}, "takes no parameter 'images'"),
        ("my_module:number", {}, "is 3; name a function f(images, prompts)"),
        ("my_module:NotAReward", {}, "or a class derived from visalign.rewards.base.Reward"),
        ("no_such_module:f", {}, "'no_such_module:f' cannot be imported"),
    ],
)
def test_wrong_input(name, params, message):
    with pytest.raises(InputError) as caught:
        build_reward(name, params)
    assert message in str(caught.value)


def failing(result):
    def reward(images, prompts):
        return result(len(images)) if callable(result) else result

    return reward


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda n: [0.5] * (n - 1), "returned 5 scores for 6 images; return one number an image"),
        (lambda n: 0.5, "returned 0.5; return a list with one number (or None) an image"),
        (lambda n: None, "returned None; return a list"),
        (lambda n: ["good"] * n, "returned ['good', 'good'"),
        (lambda n: [1.0, float("nan")] + [1.0] * (n - 2), "gave nan for row 1, prompt 'prompt 1' (1 of 6 rows)"),
        (lambda n: [float("inf")] * n, "gave inf for row 0, prompt 'prompt 0' (6 of 6 rows)"),
    ],
)
def test_a_function_that_returns_something_else(user_module, result, message):
    vars(user_module)["bad"] = failing(result)
    with pytest.raises(RunError) as caught:
        bank("my_module:bad#label").score(MEDIA, PROMPTS)
    assert "reward 'my_module:bad#label' " in str(caught.value)
    assert message in str(caught.value)


def test_nan_row_is_counted_over_the_whole_batch(user_module):
    vars(user_module)["bad"] = lambda images, prompts: [float("nan") if "5" in p else 1 for p in prompts]
    with pytest.raises(RunError, match="row 5, prompt 'prompt 5'"):
        bank("my_module:bad", micro_batch=2).score(MEDIA, PROMPTS)


def test_a_function_that_raises_is_named_and_its_cause_kept(user_module):
    def bad(images, prompts):
        raise KeyError("colour")

    vars(user_module)["bad"] = bad
    with pytest.raises(RunError, match=r"reward 'my_module:bad' raised KeyError: 'colour'\. Correct") as caught:
        bank("my_module:bad").score(MEDIA, PROMPTS)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (Scores(torch.zeros(6, 1)), "returned values of shape (6, 1) for 6 rows"),
        (Scores(torch.zeros(6), {"part": torch.zeros(3)}), "returned part of shape (3,) for 6 rows"),
        (Scores(torch.zeros(6), valid=torch.ones(5, dtype=torch.bool)), "returned valid of shape (5,) for 6 rows"),
    ],
    ids=["column", "part", "valid"],
)
def test_a_class_that_returns_another_shape(user_module, monkeypatch, scores, message):
    monkeypatch.setattr(Grouped, "score", lambda self, media, prompts: scores)
    with pytest.raises(RunError) as caught:
        bank("my_module:Grouped").score(MEDIA, PROMPTS)
    assert message in str(caught.value)


def test_other_number_of_prompts():
    with pytest.raises(InputError, match="6 media came with 2 prompts; give one prompt for each"):
        bank("jpeg_size").score(MEDIA, PROMPTS.take([0, 1]))


def test_examples():
    result = doctest.testmod(scoring)
    assert result.attempted > 0
    assert result.failed == 0
