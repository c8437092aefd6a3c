"""Rewards × media → Scores: a bank of named, weighted rewards behind one call."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visalign import registry
from visalign.aggregation import weighted_sum
from visalign.rewards.base import Reward, RewardSpec
from visalign.rewards.function import FunctionReward
from visalign.rewards.lifting import Lifted
from visalign.section import nearest
from visalign.types import InputError, Media, Prompts, RunError, Scores

if TYPE_CHECKING:
    from visalign.config import RewardEntry

Judge = Callable[[Media, Prompts], Scores]


def build_reward(name: str, params: Mapping[str, Any] | None = None) -> Reward:
    """The reward behind a name: a short name, an entry point, or a dotted path to a class or a plain function.

    Text after `#` is a label: `shapes#counting` and `shapes#position` are two rewards of one kind.

    Args:
        name: what to load.
        params: its keyword arguments.

    Raises:
        InputError: the name is unknown, is no reward, or does not take these params.

    Example:
        >>> build_reward("jpeg_size#small", {"direction": "compress"}).spec.name
        'jpeg_size'
    """
    target, params = registry.load("rewards", name.partition("#")[0]), dict(params or {})
    is_reward = isinstance(target, type) and issubclass(target, Reward)
    if not callable(target) or (isinstance(target, type) and not is_reward):
        raise InputError(
            f"reward {name!r} is {target!r:.80}; name a function f(images, prompts) that returns one number an image, "
            f"or a class derived from visalign.rewards.base.Reward"
        )
    _check_params(name, target, params, given=0 if is_reward else 2)
    return target(**params) if is_reward else FunctionReward(target, name, params)


def _check_params(name: str, target: Callable[..., Any], params: Mapping[str, Any], given: int) -> None:
    """Refuse keyword arguments that do not exist; the first `given` parameters are not the user's to set."""
    taken = list(inspect.signature(target).parameters.values())[given:]
    allowed = [p.name for p in taken if p.kind is not p.VAR_KEYWORD]
    unknown = [key for key in params if key not in allowed]
    if unknown and len(allowed) == len(taken):
        raise InputError(
            f"reward {name!r} takes no parameter {unknown[0]!r}.{nearest(unknown[0], allowed)} "
            f"It takes: {', '.join(allowed) or 'none'}"
        )


class RewardBank:
    """Several rewards behind one call: the weighted sum of their raw values, with every part beside it.

    An image reward judges videos as its entry's `lift` says; without it, by 8 evenly spaced frames, averaged
    (`rewards/lifting.py`). A row is valid when every reward could judge it.

    Args:
        entries: name → entry with `weight` and `params`; with none, every value is 0.
        device: where the rewards work; media are moved there.
        micro_batch: rows scored at once; None is all. Pairwise and groupwise rewards always see all rows.

    Raises:
        InputError: a name is unknown, or a reward does not take its params.

    Example:
        >>> from visalign.config import RewardEntry
        >>> bank = RewardBank({"jpeg_size": RewardEntry(weight=0.5, params={"direction": "incompress"})})
        >>> scores = bank.score(Media(torch.zeros(2, 1, 3, 64, 64)), Prompts(("a wall", "a wall")))
        >>> bool((scores.values == 0.5 * scores.components["jpeg_size"]).all())
        True
    """

    def __init__(
        self, entries: Mapping[str, RewardEntry], device: str | torch.device = "cpu", micro_batch: int | None = None
    ) -> None:
        self.device = torch.device(device)
        self.micro_batch = micro_batch
        self.weights = {name: entry.weight for name, entry in entries.items()}
        self._rewards = {name: build_reward(name, entry.params) for name, entry in entries.items()}
        for name, entry in entries.items():
            _check_params(f"{name}, lift", Lifted, entry.lift, given=1)
        self._lifted = {name: Lifted(self._rewards[name], **entry.lift) for name, entry in entries.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards' names, labels included."""
        return tuple(self._rewards)

    @property
    def specs(self) -> dict[str, RewardSpec]:
        """The facts of each reward, by name."""
        return {name: reward.spec for name, reward in self._rewards.items()}

    def alone(self) -> RewardBank:
        """The same rewards without those that compare media of a prompt: an evaluation has one sample a prompt.

        Raises:
            InputError: no reward is left.
        """
        names = [name for name, spec in self.specs.items() if spec.kind == "pointwise"]
        if self._rewards and not names:
            raise InputError(
                f"{', '.join(self._rewards)} compare samples of a prompt, and an evaluation has one of each; add a "
                f"reward that judges a sample by itself, for example held_out_rewards: {{clip: 1.0}}"
            )
        bank = copy.copy(self)
        bank.weights = {name: self.weights[name] for name in names}
        bank._rewards = {name: self._rewards[name] for name in names}
        return bank

    @torch.no_grad()
    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of B media for B prompts, on the CPU.

        Returns:
            `values` (B,), the weighted sum of raw values; `components`, each reward's raw values under its name and its
            parts under `name/part`, NaN where it was invalid; `valid` (B,), True where every reward could judge. Values
            of invalid rows are 0.

        Raises:
            InputError: a prompt lacks a column that a reward needs.
            RunError: a reward raised, or returned the wrong number of values, NaN or an infinity.
        """
        return _to_cpu(self._score(media, prompts, grad=False))

    def score_with_grad(self, media: Media, prompts: Prompts) -> Scores:
        """The same scores with gradients to `media.pixels`, on the bank's device.

        Raises:
            InputError: a reward is not differentiable, or a prompt lacks a column.
            RunError: as in `score`.
        """
        return self._score(media, prompts, grad=True)

    def _score(self, media: Media, prompts: Prompts, grad: bool) -> Scores:
        if len(media) != len(prompts):
            raise InputError(f"{len(media)} media came with {len(prompts)} prompts; give one prompt for each")
        media = Media(media.pixels.to(self.device), media.fps)
        results = {name: self._judge(name, media, prompts, grad) for name in self._rewards}
        return _combine(results, self.weights, torch.ones(len(media), dtype=torch.bool, device=self.device))

    def _judge(self, name: str, media: Media, prompts: Prompts, grad: bool) -> Scores:
        """One reward's scores, on the bank's device, checked."""
        reward = self._rewards[name]
        if media.pixels.shape[1] > 1 and "video" not in reward.spec.media:
            reward = self._lifted[name]
        size = self.micro_batch if self.micro_batch and reward.spec.kind == "pointwise" else max(1, len(media))
        judge = reward.score_with_grad if grad else reward.score
        starts = range(0, len(media), size)
        parts = [_call(name, judge, _slice(media, i, size), _rows(prompts, i, size), self.device) for i in starts]
        scores = _join(parts)
        _check_finite(name, scores, prompts)
        return scores


def _slice(media: Media, start: int, size: int) -> Media:
    return Media(media.pixels[start : start + size], media.fps)


def _rows(prompts: Prompts, start: int, size: int) -> Prompts:
    return prompts.take(range(start, min(start + size, len(prompts))))


def _call(name: str, judge: Judge, media: Media, prompts: Prompts, device: torch.device) -> Scores:
    """Call a reward; whatever goes wrong inside becomes one message that names it."""
    try:
        scores = judge(media, prompts)
    except (InputError, RunError):
        raise
    except Exception as error:
        raise RunError(
            f"reward {name!r} raised {type(error).__name__}: {error}. Correct the reward, or leave it out of the config"
        ) from error
    tensors = {"values": scores.values, "valid": scores.valid, **scores.components}
    for part, tensor in tensors.items():
        if tensor.shape != (len(prompts),):
            raise RunError(
                f"reward {name!r} returned {part} of shape {tuple(tensor.shape)} for {len(prompts)} rows; "
                f"return one number a row, shape ({len(prompts)},)"
            )
    components = {part: v.to(device).float() for part, v in scores.components.items()}
    return Scores(scores.values.to(device).float(), components, scores.valid.to(device))


def _join(parts: list[Scores]) -> Scores:
    components = {part: torch.cat([p.components[part] for p in parts]) for part in parts[0].components}
    return Scores(torch.cat([p.values for p in parts]), components, torch.cat([p.valid for p in parts]))


def _check_finite(name: str, scores: Scores, prompts: Prompts) -> None:
    bad = (scores.valid & ~scores.values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RunError(
            f"reward {name!r} gave {scores.values[bad[0]].item()} for row {bad[0]}, prompt {prompts.texts[bad[0]]!r} "
            f"({len(bad)} of {len(prompts)} rows). Return a finite number, or None (valid=False) where it cannot judge"
        )


def _combine(results: Mapping[str, Scores], weights: Mapping[str, float], every_row: Tensor) -> Scores:
    valid, components = every_row, dict[str, Tensor]()
    for name, scores in results.items():
        valid = valid & scores.valid
        for part, value in {name: scores.values, **{f"{name}/{p}": v for p, v in scores.components.items()}}.items():
            components[part] = torch.where(scores.valid, value, torch.nan)
    return Scores(weighted_sum(components, weights, torch.zeros_like(valid).long(), valid), components, valid)


def _to_cpu(scores: Scores) -> Scores:
    return Scores(scores.values.cpu(), {k: v.cpu() for k, v in scores.components.items()}, scores.valid.cpu())
