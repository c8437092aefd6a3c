"""The rewards of a scoring run: how they are asked for, what each needs, and one batch of one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml

from visalign import registry
from visalign.batch.item import Item
from visalign.rewards.lifting import Lifted, frame_indices
from visalign.scoring import build_reward
from visalign.section import nearest
from visalign.types import InputError, Media, Prompts, RunError

Params = Mapping[str, Any]
Asked = dict[str, dict[str, Any]]
JUDGES = ("shapes",)


@dataclass(frozen=True)
class Work:
    """Content to be scored, once, however many files hold it.

    Attributes:
        key: of content, prompt and columns.
        item: one of the files that hold it.
        prompt: None where there is none.
        columns: of its row.
        rewards: names of those that have not judged it.
    """

    key: str
    item: Item
    prompt: str | None
    columns: Mapping[str, Any]
    rewards: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What one reward says of one content.

    Attributes:
        key: of the work.
        reward: its name.
        score: None where it could not be judged.
        components: the reward's parts by name.
        error: why there is no score; empty where there is one.
        file: a file that holds the content.
    """

    key: str
    reward: str
    score: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    file: str = ""


def parse_rewards(asked: str | Sequence[str] | Mapping[str, Params]) -> Asked:
    """Names of rewards with their params.

    Args:
        asked: texts such as `clip,aesthetic` or `jpeg_size:quality=80,unit=bits_per_pixel`; `my_module:my_reward` is a
            dotted path. Or a mapping from name to params.

    Raises:
        InputError: there are none, or one comes twice.

    Example:
        >>> parse_rewards("clip#a:model=shapes/clip,my_module:f,jpeg_size:quality=80,unit=bits_per_pixel")
        {'clip#a': {'model': 'shapes/clip'}, 'my_module:f': {}, 'jpeg_size': {'quality': 80, 'unit': 'bits_per_pixel'}}
    """
    if isinstance(asked, Mapping):
        return {name: dict(params) for name, params in asked.items()}
    texts, found = [asked] if isinstance(asked, str) else asked, Asked()
    for part in (part.strip() for text in texts for part in text.split(",") if part.strip()):
        head, sign, value = part.partition("=")
        name, _, key = head.rpartition(":") if sign else (head, "", "")
        if name in found and not (sign and name == ""):
            raise InputError(f"reward {name!r} comes twice; give each a label, as in {name}#a,{name}#b")
        if sign and not name and not found:
            raise InputError(f"{part!r} stands before any reward; write name:{part}")
        held = found.setdefault(name, {}) if name else found[next(reversed(found))]
        held |= {key: _value(value)} if sign else {}
    if not found:
        raise InputError("give at least one reward, as in --reward clip,aesthetic; see: visalign list rewards")
    return found


def _value(text: str) -> Any:
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)  # YAML 1.1 reads 1e-4 as a text
    except (ValueError, yaml.YAMLError):
        return text


def with_judges(asked: Asked, judges: str | None) -> Asked:
    """The rewards with the shipped tiny models in place of their own, where they have one and name no other.

    Args:
        asked: name → params.
        judges: `shapes`, or None for the rewards' own models.

    Raises:
        InputError: there are no such judges, or a reward is unknown.

    Example:
        >>> with_judges({"clip": {}, "jpeg_size": {}}, "shapes")
        {'clip': {'model': 'shapes/clip'}, 'jpeg_size': {}}
    """
    if judges is None:
        return asked
    if judges not in JUDGES:
        raise InputError(f"there are no judges {judges!r}.{nearest(judges, JUDGES)} Shipped: {', '.join(JUDGES)}")
    return {name: _tiny(name) | params for name, params in asked.items()}


def _tiny(name: str) -> dict[str, Any]:
    target = registry.load("rewards", name.partition("#")[0])
    spec = vars(target).get("spec") if isinstance(target, type) else None
    return {"model": spec.tiny} if spec is not None and spec.tiny else {}


def judged_frames(judges: Sequence[Judge]) -> Callable[[int], Sequence[int]]:
    """Which of a video's frames some rewards need: all for one that judges videos, else eight evenly spaced ones."""
    return range if any(judge.whole_videos for judge in judges) else frame_indices


class Judge:
    """One reward of the run.

    Args:
        name: as it was asked for, label included.
        params: its keyword arguments.
        device: where it works.

    Raises:
        InputError: the reward is unknown, does not take these params, or cannot judge files one by one.
    """

    def __init__(self, name: str, params: Params, device: torch.device) -> None:
        self.name, self.device = name, device
        self.reward = build_reward(name, params)
        if self.reward.spec.kind != "pointwise":
            raise InputError(
                f"reward {name!r} is {self.reward.spec.kind}: it compares samples with each other, and score judges "
                f"files one by one; leave it out, or use it in training"
            )

    def lacks(self, prompt: str | None, columns: Mapping[str, Any]) -> str:
        """What the reward needs and a file does not have, as a reason; empty where it has all."""
        if "prompt" in self.reward.spec.inputs and prompt is None:
            return "no prompt: give a table, a .txt file beside it, or --prompt TEXT"
        missing = [name for name in self.reward.spec.inputs if name != "prompt" and name not in columns]
        return f"no column: {', '.join(missing)}; give a table with it" if missing else ""

    @property
    def whole_videos(self) -> bool:
        """Whether it sees every frame; image rewards see eight."""
        return "video" in self.reward.spec.media

    def refuses(self, media: Media) -> str:
        """Why the reward does not judge this kind of media, as a reason; empty where it does."""
        judges_it = media.fps > 0 or media.pixels.shape[1] > 1 or "image" in self.reward.spec.media
        return "" if judges_it else "unsupported: this reward judges videos only"

    @torch.no_grad()
    def prepare(self, media: Media) -> Media:
        """The reward's own preprocessing of one medium; of a video, that of its judged frames for an image reward.

        Raises:
            RunError: the reward raised.
        """
        try:
            if media.pixels.shape[1] == 1 or self.whole_videos:
                return self.reward.prepare(media)
            stills = [self.reward.prepare(Media(media.pixels[:, [i]])) for i in frame_indices(media.pixels.shape[1])]
            return Media(torch.cat([still.pixels for still in stills], 1), media.fps)
        except Exception as error:
            raise self._failed(error) from error

    @torch.no_grad()
    def score(self, media: Media, works: Sequence[Work]) -> list[Outcome]:
        """Outcomes of B prepared media of one shape.

        Raises:
            InputError: a column does not fit.
            RunError: the reward raised, or returned the wrong number of values.
        """
        prompts = Prompts(tuple(w.prompt or "" for w in works), tuple(w.columns for w in works))
        reward = self.reward if media.pixels.shape[1] == 1 or self.whole_videos else Lifted(self.reward)
        try:
            scores = reward.score(Media(media.pixels.to(self.device), media.fps), prompts)
        except (InputError, RunError):
            raise
        except Exception as error:
            raise self._failed(error) from error
        if scores.values.shape != (len(works),) or scores.valid.shape != (len(works),):
            raise RunError(f"reward {self.name!r} returned {tuple(scores.values.shape)} values for {len(works)} files")
        values, valid = scores.values.float().tolist(), scores.valid.tolist()
        parts = {name: v.float().tolist() for name, v in scores.components.items()}
        rows = ({name: v[i] for name, v in parts.items() if math.isfinite(v[i])} for i in range(len(works)))
        return [self._outcome(*row) for row in zip(works, values, valid, rows, strict=True)]

    def _outcome(self, work: Work, value: float, valid: bool, parts: dict[str, float]) -> Outcome:
        error = (
            ""
            if valid and math.isfinite(value)
            else f"not finite: {value}"
            if valid
            else "not judged: the reward could not judge it"
        )
        score = None if error else value
        return Outcome(work.key, self.name, score, {} if error else parts, error, work.item.name)

    def _failed(self, error: Exception) -> RunError:
        return RunError(
            f"reward {self.name!r} raised {type(error).__name__}: {error}. Correct it, or leave it out; the same "
            f"command goes on where this one stopped"
        )
