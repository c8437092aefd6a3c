"""How good `shapes/vlm` is, by the verifier: what it answers in a word, and what rewards read in its long answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visalign import registry
from visalign.shapes.judges.claims import share_in_common
from visalign.shapes.judges.measure import Figures, Table, Trial, rendered, trials
from visalign.shapes.judges.metrics import auroc, binary, spearman
from visalign.shapes.judges.questions import ALIKE, fill
from visalign.shapes.judges.qwen import FRAMES
from visalign.shapes.judges.recipes import VlmRecipe
from visalign.shapes.judges.vlm import Vlm, load_vlm
from visalign.shapes.verifier import verify
from visalign.types import Media, Prompts

LENGTHY = ("unifiedreward", "rationalrewards")
"""Rewards whose marks stand in long answers."""
VIDEOS = ("videoscore2",)
"""Rewards of videos, whose marks stand in long answers too."""
_CHUNK = 32


@torch.no_grad()
def first_words(vlm: Vlm, processor: Any, pictures: Sequence[Sequence[Tensor]], texts: Sequence[str]) -> Tensor:
    """Probabilities (B, V) of the first token of the answers, asked through the processor as everyone asks.

    Args:
        vlm: the model.
        processor: its processor.
        pictures: (3, S, S) each in [0, 1], the same number for every text.
        texts: the questions.
    """
    parts = []
    for start in range(0, len(texts), _CHUNK):
        rows = zip(pictures[start : start + _CHUNK], texts[start : start + _CHUNK], strict=True)
        inputs = processor.apply_chat_template(
            [_message(*row) for row in rows],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        parts.append(vlm(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].softmax(dim=-1))
    return torch.cat(parts)


def _message(pictures: Sequence[Tensor], text: str) -> list[dict[str, Any]]:
    arrays = [(p.permute(1, 2, 0) * 255).round().byte().numpy() for p in pictures]
    content = [*({"type": "image", "image": array} for array in arrays), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


class Asker:
    """Asks a saved `shapes/vlm` by its own wordings, through its processor."""

    def __init__(self, recipe: VlmRecipe, folder: Path) -> None:
        self.recipe = recipe
        self.vlm, self.processor = load_vlm(folder)
        self.words: dict[str, int] = self.processor.tokenizer.get_vocab()

    def __call__(self, kind: str, trial: Trial, answers: str, *before: Trial, wording: int = 0) -> Tensor:
        """Probabilities (N, A) of answers, which add up to 1; pictures of the trials before are shown first."""
        texts = [fill(self.recipe.questions[kind].ask[wording], {"prompt": c}) for c in trial.captions]
        pictures = list(zip(*(t.pixels for t in (*before, trial)), strict=True))
        numbers = [self.words[a] for a in answers.split()]
        found = first_words(self.vlm, self.processor, pictures, texts)[:, numbers]
        return found / found.sum(dim=1, keepdim=True)


def measure_vlm(recipe: VlmRecipe, encoder: Path, folder: Path) -> Table:
    """Its verdicts, marks, counts and comparisons, in a word and in long answers."""
    ask, found = Asker(recipe, folder), trials(recipe)
    table: Table = {}
    for name, trial in found.items():
        shows, flaws = (ask(kind, trial, "Yes No")[:, 0] for kind in ("shows", "flawed"))
        mark = ask("fit05", trial, "0 1 2 3 4 5") @ torch.arange(6.0)
        counts = ask("total", trial, "0 1 2 3 4 5").argmax(dim=1)
        table[f"{name}, caption"] = {**binary(shows, trial.right), "spearman": spearman(mark, trial.graded)}
        table[f"{name}, flaws"] = {**binary(flaws, trial.flawed), "spearman": spearman(flaws, trial.strength)}
        table[f"{name}, count"] = {"accuracy": float((counts == trial.total).float().mean())}
    first, last = found["renders"], rendered(recipe, 0.0, opposite=True)
    better = ask("better", last, "Yes No", first)[:, 0]
    table["renders, second better"] = binary(better, (last.graded > first.graded).float())
    table["renders, one style"] = style(ask, first, found["damaged renders"])
    table |= {f"renders, same objects, {name}": agreement(ask, first, o) for name, o in rivals(first, last).items()}
    table |= {
        f"{test}, {reward}": long_answers(reward, folder, found[test])
        for test in ("renders", "samples")
        for reward in LENGTHY
    }
    return table | {f"videos, {name}": videos(name, folder, first, last) for name in VIDEOS}


def rivals(trial: Trial, wrong: Trial) -> dict[str, Trial]:
    """What pictures are held against: pictures of other captions, and those that differ in one fact."""
    others = replace(trial, pixels=trial.pixels.roll(1, 0), rows=(*trial.rows[-1:], *trial.rows[:-1]))
    return {"others": others, "one fact": wrong}


def agreement(ask: Asker, trial: Trial, other: Trial) -> Figures:
    """Do two pictures show the same objects? Each with itself, and with the one of another trial."""
    # The last wording asks for objects in plain words; the others are those of `consistency`.
    same = torch.cat([ask("same", trial, "Yes No", first, wording=-1)[:, 0] for first in (trial, other)])
    own, others = (verify(t.pixels, t.rows).objects for t in (trial, other))
    shared = [share_in_common(*pair) for pair in zip((*own, *others), (*own, *own), strict=True)]
    return binary(same, (torch.tensor(shared) == 1).float())


def style(ask: Asker, trial: Trial, damaged: Trial) -> Figures:
    """Are a clean picture and one that may be damaged made in one style?"""
    return binary(ask("style", damaged, "Yes No", trial)[:, 0], (damaged.strength < ALIKE).float())


def videos(name: str, folder: Path, trial: Trial, other: Trial) -> Figures:
    """Of pictures that stand still: how many can be read, and do marks follow the verifier?

    `frames` is how well the reward tells them, by physical consistency, from videos that show another trial first.
    """
    reward = registry.load("rewards", name)(model=str(folder))
    still = trial.pixels[:, None].expand(-1, FRAMES, -1, -1, -1)  # (N, F, 3, S, S)
    torn = torch.cat([other.pixels[:, None].expand(-1, FRAMES // 2, -1, -1, -1), still[:, FRAMES // 2 :]], 1)
    found, broken = (reward.score(Media(v, fps=2.0), Prompts(tuple(trial.captions))) for v in (still, torn))
    valid = found.valid
    if not (valid.any() and broken.valid.any()):
        return {"valid": float(valid.float().mean())}
    whole, apart = (s.components["physical_consistency"][s.valid] for s in (found, broken))
    return {
        "auroc": auroc(found.values[valid], trial.right[valid]),
        "spearman": spearman(found.values[valid], trial.graded[valid]),
        "valid": float(valid.float().mean()),
        "frames": auroc(torch.cat([whole, apart]), torch.cat([torch.ones_like(whole), torch.zeros_like(apart)])),
    }


def long_answers(name: str, folder: Path, trial: Trial) -> Figures:
    """By a reward that reads long answers: how many can be read, and do their marks follow the verifier?"""
    reward = registry.load("rewards", name)(model=str(folder))
    scores = reward.score(Media.of_images(trial.pixels), Prompts(tuple(trial.captions)))
    valid = scores.valid
    values, right, graded = scores.values[valid], trial.right[valid], trial.graded[valid]
    read = {"auroc": auroc(values, right), "spearman": spearman(values, graded)} if valid.any() else {}
    return read | {"valid": float(valid.float().mean())}
