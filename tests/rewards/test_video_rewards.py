"""VideoAlign on a real Qwen2-VL with live adapters, and VideoScore2 by scripted and by real judges."""

import math

import pytest
import torch

from tests.rewards import tiny_vlm
from tests.rewards.tiny_qwen import (
    HIDDEN,
    loads,
    old_names,
    real_config,
    resized,
    states_at,
    text_layout,
    tiny_base,
    tiny_model,
    vision_layout,
)
from visalign.rewards import videoalign as videoalign_module
from visalign.rewards.check import check_reward
from visalign.rewards.judge import Answer, Judge
from visalign.rewards.local_judge import LocalJudge
from visalign.rewards.videoalign import HEAD, SCALE, VideoAlign, grey, per_token
from visalign.rewards.videoscore2 import PARTS, VideoScore2, digit_places, soft_scores
from visalign.types import InputError, Media, Prompts

PROMPTS = Prompts(("a cat runs", "two blue squares beside a much longer sentence", "a dog"))
FRAMES = torch.rand(3, 7, 3, 64, 64, generator=torch.Generator().manual_seed(0))
VIDEO = Media(FRAMES, fps=4.0)  # 1.75 s: frames 0, 2, 4, 6
TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
SIDE = 336  # 64 × 64 raised to at least 128 × 28 × 28 pixels, in multiples of 28


def with_adapters(model):
    """LoRA on all linear layers of the language model, as it was trained, with weights that matter."""
    from peft import LoraConfig, get_peft_model

    linear = [n for n, m in model.named_modules() if "language_model" in n and isinstance(m, torch.nn.Linear)]
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=128, target_modules=linear)).eval()
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return adapted


def made(folder, width=1):
    """A base folder, a checkpoint in the released layout, the model in it, its head, and the reward."""
    base = tiny_base(folder / "base")
    adapted = with_adapters(tiny_model(base, TOKENS))
    head = torch.randn(width, HIDDEN)
    inner = {n.removeprefix("base_model.model."): v for n, v in adapted.state_dict().items()}
    state = {f"base_model.model.{n}": v for n, v in (old_names(inner) | {"rm_head.weight": head}).items()}
    (folder / "checkpoint-1").mkdir()
    torch.save(state, folder / "checkpoint-1" / "model.pth")
    file = str(folder / "checkpoint-1" / "model.pth")
    return base, file, adapted.base_model.model, head, VideoAlign(base, file, dtype="float32")


@pytest.fixture(scope="module")
def align(tmp_path_factory):
    return made(tmp_path_factory.mktemp("align"))


def by_hand(align, frames, prompts, pick=lambda head, states: (states @ head.T)[:, 0]):
    """Raw outputs at the three tokens of each row, (B, 3)."""
    _, _, model, head, reward = align
    rows = []
    for video, prompt in zip(frames, prompts.texts):
        text = reward.template.replace("{prompt}", prompt)
        rows.append(pick(head, states_at(model, reward.net.processor, "video", video, text, TOKENS)))
    return torch.stack(rows)


def judged_frames(frames=FRAMES):
    chosen = frames[:, [0, 2, 4, 6]]
    return resized(chosen.flatten(0, 1), SIDE, SIDE).unflatten(0, chosen.shape[:2])


def test_videoalign_file_layout():
    layout = [*vision_layout(1536), *text_layout(1536, 8960, 256, 151660, rank=64), ("rm_head.weight", (1, 1536))]
    model, _, size = loads([(f"base_model.model.{n}", s) for n, s in layout], real_config(1536, 8960, 12, 256), HEAD)
    adapters = [m for m in model.modules() if type(m).__module__.startswith("peft")]
    assert len(adapters) == 28 * 7
    assert {(m.r["default"], m.scaling["default"]) for m in adapters} == {(64, 2.0)}
    assert 0 < 5_031_072_529 - size < 400 * len(layout)  # the released file: these tensors, each in a zip entry


@torch.no_grad()
def test_videoalign_against_the_formula(align):
    scores = align[4].score(VIDEO, PROMPTS)
    raw = by_hand(align, judged_frames(), PROMPTS)
    parts = (raw - torch.tensor([3.6757, 1.1646, 2.8105])) / torch.tensor([2.2476, 1.3811, 2.5121])
    assert list(scores.components) == ["VQ", "MQ", "TA"]
    for i, part in enumerate(scores.components.values()):
        torch.testing.assert_close(part, parts[:, i], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores.values, parts.sum(1), rtol=1e-4, atol=1e-4)
    assert float(scores.values.std()) > 1e-4


@torch.no_grad()
def test_a_head_of_three_is_read_on_its_diagonal(tmp_path):
    wide = made(tmp_path, width=3)
    raw = by_hand(wide, judged_frames(), PROMPTS, pick=lambda head, states: (head * states).sum(1))
    scores = wide[4].score(VIDEO, PROMPTS)
    for i, (name, (mean, std)) in enumerate(SCALE.items()):
        torch.testing.assert_close(scores.components[name], (raw[:, i] - mean) / std, rtol=1e-4, atol=1e-5)
    outputs = torch.arange(18.0).reshape(2, 3, 3)
    assert per_token(outputs).tolist() == [[0, 4, 8], [9, 13, 17]]
    assert per_token(outputs[..., :1]).tolist() == [[0, 3, 6], [9, 12, 15]]


def test_videoalign_keeps_the_contract(align):
    check_reward(align[4], VIDEO, PROMPTS)


def test_the_adapters_matter(align, tmp_path):
    base, file, _, _, reward = align
    state = torch.load(file, weights_only=True)
    torch.save({n: v * ("lora_B" not in n) for n, v in state.items()}, tmp_path / "model.pth")
    without = VideoAlign(base, str(tmp_path / "model.pth"), dtype="float32").score(VIDEO, PROMPTS)
    assert not torch.allclose(without.values, reward.score(VIDEO, PROMPTS).values, atol=1e-3)


def test_quality_does_not_depend_on_the_prompt(align):
    same = Media(FRAMES[:1].expand(2, -1, -1, -1, -1), 4.0)
    parts = align[4].score(same, PROMPTS.take([0, 1])).components
    spread = {name: float((part[0] - part[1]).abs()) for name, part in parts.items()}
    assert spread["VQ"] < 1e-5
    assert spread["MQ"] < 1e-5
    assert spread["TA"] > 1e-4


def test_motion_without_colour(align):
    base, file, _, _, colour = align
    without = VideoAlign(base, file, grayscale=True, dtype="float32")
    assert without.net is colour.net
    plain, mixed = colour.score(VIDEO, PROMPTS), without.score(VIDEO, PROMPTS)
    all_grey = colour.score(Media(grey(FRAMES), 4.0), PROMPTS)
    assert torch.equal(mixed.components["VQ"], plain.components["VQ"])
    assert torch.equal(mixed.components["TA"], plain.components["TA"])
    torch.testing.assert_close(mixed.components["MQ"], all_grey.components["MQ"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed.components["MQ"], plain.components["MQ"], atol=1e-4)
    torch.testing.assert_close(mixed.values, sum(mixed.components.values()))
    red = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 2, 2)
    torch.testing.assert_close(grey(red), torch.full((3, 2, 2), 0.299))


def test_only_judged_frames_get_a_gradient(align):
    pixels = FRAMES[:1].clone().requires_grad_()
    align[4].score_with_grad(Media(pixels, 4.0), PROMPTS.take([0])).values.sum().backward()
    assert pixels.grad.abs().sum((0, 2, 3, 4)).nonzero().flatten().tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("media", [Media(FRAMES[:, :1]), Media(FRAMES)])
def test_media_that_are_no_videos_with_a_rate_are_refused(align, media):
    for reward in (align[4], VideoScore2(Scripted([]))):
        with pytest.raises(InputError, match="two frames or more whose rate is known"):
            reward.score(media, PROMPTS)


class Scripted(Judge):
    """Gives prepared answers in turn, and keeps the questions."""

    def __init__(self, answers):
        self.answers = list(answers)
        self.asked = []

    def ask(self, questions):
        self.asked += questions
        return [self.answers.pop(0) for _ in questions]


def spoken(text, odds=()):
    """An answer of one token a character; `odds` are the distributions at the digits that decide, in turn."""
    tokens = tuple(text)
    logprobs = [{token: -0.01} for token in tokens]
    for place, probabilities in zip(digit_places(text) or (), odds):
        logprobs[place] = {digit: math.log(p) for digit, p in probabilities.items()}
    return Answer(text, tokens, tuple(logprobs))


LINES = "(1) visual quality – sharp (mostly): 5\n(2) text-to-video alignment: 3\n(3) physical consistency: 1"
THOUGHT = f"<think>(1) maybe 2, (2) rather 2, (3) 2.</think>\n{LINES}"


def test_scores_are_expectations_and_rise_with_the_odds():
    odds = [{"4": 0.45, "5": 0.55}, {"3": 1.0}, {"1": 0.8, "2": 0.1, "\n": 0.1}]
    found = soft_scores(spoken(THOUGHT, odds))
    assert found == pytest.approx([4.55, 3.0, 1 + 0.1 / 0.9])
    assert found[0] > 3  # the published rule gives 5 · 0.55 = 2.75, less than a certain 3


def test_tokens_may_be_longer_than_a_digit():
    tokens = ("(1)", " quality:", " 4", "\n(2) text: ", "5", ".\n(3", ") physics:", " **", "2", "**")
    logprobs = [{token: 0.0} for token in tokens]
    logprobs[2] = {" 4": math.log(0.5), "4": math.log(0.25), " 3": math.log(0.25)}
    assert soft_scores(Answer("", tokens, tuple(logprobs))) == pytest.approx([3.75, 5.0, 2.0])


@pytest.mark.parametrize(
    "answer",
    [
        Answer(error="time-out"),
        Answer(LINES),  # no log-probabilities came
        spoken("It is a good video."),
        spoken("<think>(1) a: 4 (2) b: 4 (3) c: 4, but then"),  # cut off while thinking
        spoken("(1) a: 4 (2) b: 4 (3) c: none"),
        spoken("(1) a: 4 (2) b: 9 (3) c: 4"),
        spoken("(1) a: 4 (2) b: 3.5 (3) c: 4"),
        spoken("(1) a, of 4K: 2 (2) b: 3 (3) c: 4"),
        spoken("(1) a (2) b: 3 (3) c: 4"),
        spoken(LINES, [{"5": 0.1, "2": 0.9}]),  # 2.3 is not what was written
        spoken(LINES, [{"x": 0.5}]),
    ],
)
def test_what_is_no_judgement_is_invalid(answer):
    good = spoken(LINES)
    scores = VideoScore2(Scripted([good, answer])).score(VIDEO.take([0, 1]), PROMPTS.take([0, 1]))
    assert scores.valid.tolist() == [True, False]
    assert scores.values[0].item() == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert all(math.isnan(part[1]) for part in scores.components.values())


def test_the_last_triple_counts():
    text = "(1) a: 2 (2) b: 2 (3) c: 2. On reflection: (1) a: 4 (2) b: 5 (3) c: 3"
    assert [text[place] for place in digit_places(text)] == ["4", "5", "3"]
    assert [THOUGHT[place] for place in digit_places(THOUGHT)] == ["5", "3", "1"]


def test_parts_and_their_mean():
    answers = [spoken(LINES.replace("5", a).replace("3\n", f"{b}\n")) for a, b in (("5", "3"), ("1", "1"), ("4", "5"))]
    judge = Scripted(answers)
    scores = VideoScore2(judge).score(VIDEO, PROMPTS)
    expected = torch.tensor([[1, 0.5, 0], [0, 0, 0], [0.75, 1, 0]])
    torch.testing.assert_close(torch.stack([scores.components[name] for name in PARTS], 1), expected)
    torch.testing.assert_close(scores.values, expected.mean(1))
    assert scores.valid.all()
    assert scores.values.dtype == torch.float32


def test_videoscore2_keeps_the_contract():
    check_reward(VideoScore2(Scripted([spoken(LINES)] * 9)), VIDEO, PROMPTS)


def test_the_question_holds_the_frames_and_the_prompt(tmp_path):
    (tmp_path / "text").write_text("Video prompt: {prompt}", encoding="utf-8")
    judge, own = Scripted([spoken(LINES)] * 3), Scripted([spoken(LINES)] * 3)
    VideoScore2(judge, template=str(tmp_path / "text"), max_tokens=77).score(VIDEO, PROMPTS)
    VideoScore2(own).score(VIDEO, PROMPTS)
    for row, (asked, other) in enumerate(zip(judge.asked, own.asked)):
        assert (asked.text, asked.system) == (f"Video prompt: {PROMPTS.texts[row]}", "")
        assert (asked.max_tokens, asked.temperature) == (77, 0.0)
        assert torch.equal(torch.stack(asked.images), FRAMES[row, [0, 2, 4, 6]])
        assert f"<prompt>\n{PROMPTS.texts[row]}\n</prompt>" in other.text
        assert "(1) visual quality: <number>" in other.text


def test_a_judge_that_cannot_do_it_gives_no_score(tmp_path):
    judge = LocalJudge(str(tiny_vlm.build(tmp_path / "judge")))
    scores = VideoScore2(judge, max_tokens=6).score(VIDEO.take([0, 1]), PROMPTS.take([0, 1]))
    assert scores.valid.tolist() == [False, False]


def test_own_texts_have_their_places():
    text = videoalign_module.RUBRIC
    places = [text.index(token) for token in TOKENS]
    assert places == sorted(places)
    assert places[1] < text.index("{prompt}") < places[2]  # what stands before the prompt cannot depend on it
