"""Recipes of the judges: everything that decides what one becomes, read from `configs/shapes/judges/NAME.yaml`."""

from __future__ import annotations

from importlib import resources

import yaml
from pydantic import Field

from visalign.shapes import JUDGES
from visalign.shapes.recipe import Strict


class TowerRecipe(Strict):
    """A transformer."""

    width: int
    layers: int
    heads: int


class Schedule(Strict):
    """How long and how fast something is trained."""

    steps: int = Field(gt=0)
    batch: int = Field(gt=1)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(gt=0)
    ema_decay: float = Field(ge=0, lt=1)
    matrix_rate: float = 1.0
    """Learning rate of the matrices inside transformer blocks, as a multiple."""
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    autocast: bool = True
    """Matrix products of images in bfloat16: faster on CPUs that have it."""
    save_every: int = 200


class SampleRecipe(Strict):
    """Pictures of the base model; few steps leave faults."""

    model: str = "sd3"
    count: int = Field(gt=0)
    steps: tuple[int, ...]
    """Numbers of denoising steps; each makes an equal part of the pictures."""


class JudgeRecipe(Strict):
    """What all judges' recipes say."""

    name: str
    seed: int
    size: int
    """Image side in pixels."""
    schedule: Schedule
    samples: SampleRecipe
    tests: int = Field(gt=0)
    """Pictures of each test."""


class ClipRecipe(JudgeRecipe):
    """A CLIP of open_clip."""

    patch: int
    embed: int
    """Width of the shared embedding."""
    vision: TowerRecipe
    text: TowerRecipe
    negatives: int = Field(gt=0)
    """Captions with one wrong fact beside each right one."""
    damaged: float = Field(ge=0, lt=1)
    """Share of the pictures that are damaged; they keep their captions."""
    faults: int = Field(gt=0)
    """Samples of the base model in each batch, for the loss on quality alone."""
    judge_weight: float = Field(ge=0)
    """Of right against slightly wrong captions of one picture."""
    scene_weight: float = Field(ge=0)
    """Of reading the scene off the embedding."""
    quality_weight: float = Field(ge=0)
    """Of reading the damage off the embedding."""


class HeadRecipe(JudgeRecipe):
    """A small network on the embeddings of `shapes/clip`."""

    hidden: tuple[int, ...]
    """Widths between the embedding and the one number."""
    range: tuple[float, float]
    """Lowest and highest value, reached through a sigmoid."""
    pictures: int = Field(gt=0)
    """Renders that are embedded once, half of them damaged."""


class PreferenceRecipe(JudgeRecipe):
    """What judges share that learn from preferences between pictures."""

    damaged_weight: float = Field(ge=0)
    """Of the clean picture against a damaged copy."""


class MpsRecipe(PreferenceRecipe):
    """The network of MPS between the tokens of `shapes/clip`, which stays as it is."""

    depth: int = Field(gt=0)
    """Pairs of layers."""
    head: int = Field(gt=0)
    """Width of one attention head."""
    heads: int = Field(gt=0)
    hidden: int = Field(gt=0)
    """Width of the feed-forward layers."""


class TaughtRecipe(PreferenceRecipe):
    """A network of its own that `shapes/clip` teaches."""

    patch: int
    vision: TowerRecipe
    text: TowerRecipe
    scene_weight: float = Field(ge=0)
    """Of reading the scene off the picture."""
    teacher_weight: float = Field(ge=0)
    """Of reading the embeddings of `shapes/clip` off picture and text."""


class BlipRecipe(TaughtRecipe):
    """ImageReward's BLIP; its widths are multiples of 64."""


class Blip2Recipe(TaughtRecipe):
    """A BLIP-2 for retrieval; `text` is the Q-Former."""

    embed: int
    """Width of the shared embedding."""
    queries: int = Field(gt=0)


class QwenRecipe(TaughtRecipe):
    """A Qwen2-VL with a trained head at special tokens."""

    context: int
    """Longest text in tokens, those of the picture counted."""
    easy_steps: int = Field(ge=0)
    """Steps at the start whose wrong pictures show something else, not one wrong fact."""


class DetectorRecipe(JudgeRecipe):
    """An OWL-ViT that starts from the towers of `shapes/clip`."""

    damaged: float = Field(ge=0, lt=1)
    """Share of the pictures that are damaged, lightly; their objects are those of the clean picture."""
    box_weight: float = Field(gt=0)
    """Of the boxes against the classes."""


class QuestionRecipe(Strict):
    """A kind of question: wordings and the answer, with slots that `questions.slots` fills."""

    weight: float = Field(1.0, gt=0)
    since: int = Field(0, ge=0)
    """The phase from which on it is asked."""
    pictures: int = Field(1, ge=0, le=4)
    """More than two are the frames of a video."""
    quality: bool = False
    """It asks for looks alone, so it can be asked about samples of the base model."""
    ask: tuple[str, ...]
    answer: str


class PhaseRecipe(Strict):
    """A part of a training: what is asked comes from easy to hard."""

    steps: int = Field(gt=0)
    longest: int = Field(gt=0)
    """Most characters of a wording, and of its answer."""
    near: float = Field(ge=0, le=1)
    """Share of the wrong claims that are wrong in one fact or two, not in all."""
    systems: float = Field(ge=0, le=1)
    """Share of the rows that have a system turn."""
    lengthy: float = Field(1.0, gt=0)
    """How many times as often as their weights say questions with long answers are asked."""
    compared: float = Field(0.0, ge=0)
    """Weight of reading what the first and the last of several pictures show, and how much of that is the same."""


class VlmRecipe(JudgeRecipe):
    """A LLaVA of transformers whose eyes are those of `shapes/clip`."""

    text: TowerRecipe
    feed_forward: int
    context: int
    """Longest conversation in tokens."""
    room: int = Field(gt=0)
    """Tokens of questions and answers about the same pictures that are learned in one row, unseen by each other."""
    phases: tuple[PhaseRecipe, ...]
    """One after another; the last goes on to the end."""
    meaning_layer: int = Field(gt=0)
    """After which layer of the text the meaning of captions is read."""
    meaning_weight: float = Field(ge=0)
    verdict_layer: int = Field(gt=0)
    """After which layer the verdict on captions is read, where answers begin."""
    verdict_weight: float = Field(ge=0)
    pair_layer: int = Field(gt=0)
    """After which layer it is read, where questions begin, what the first and the last picture show."""
    common_layer: int = Field(gt=0)
    """After which layer it is read how much of that is the same."""
    damaged: float = Field(ge=0, lt=1)
    sampled: float = Field(ge=0, lt=1)
    """Share of one-picture rows that show a sample of the base model."""
    systems: tuple[str, ...]
    questions: dict[str, QuestionRecipe]


_KINDS: dict[str, type[JudgeRecipe]] = {
    "clip": ClipRecipe,
    "aesthetic": HeadRecipe,
    "artifact": HeadRecipe,
    "vlm": VlmRecipe,
    "mps": MpsRecipe,
    "blip": BlipRecipe,
    "blip2": Blip2Recipe,
    "hpsv3": QwenRecipe,
    "videoalign": QwenRecipe,
    "detector": DetectorRecipe,
}


def load_recipe(name: str) -> JudgeRecipe:
    """Read the recipe of a shipped judge.

    Raises:
        ValueError: no such judge, or a key that its recipe does not have.

    Example:
        >>> load_recipe("clip").size
        64
    """
    if name not in JUDGES:
        raise ValueError(f"unknown shapes judge {name!r}; write one of {', '.join(JUDGES)}")
    text = (resources.files("visalign.configs") / "shapes" / "judges" / f"{name}.yaml").read_text(encoding="utf-8")
    return _KINDS[name].model_validate(yaml.safe_load(text))
