"""The contract of a reward, shipped for authors of rewards: `check_reward(MyReward(), media, prompts)` in a test."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from visalign.rewards.base import Reward
from visalign.types import InputError, Media, Prompts, Scores

RTOL, ATOL = 1e-4, 1e-5


def check_reward(reward: Reward, media: Media, prompts: Prompts) -> None:
    """Check that a reward keeps its promises on a batch.

    One float32 number a row, in `spec.range`, finite where valid; the same at every call; the same for a row alone and
    in the batch (pointwise rewards); input left as it was; a finite gradient that is not zero if, and only if, the
    reward says that it is differentiable.

    Args:
        reward: the reward.
        media: two rows or more that it can judge; for a differentiable reward not at a point where it is flat.
        prompts: as many prompts.

    Raises:
        AssertionError: a promise is broken; the message says which.

    Example:
        >>> from visalign.rewards.jpeg_size import JpegSize
        >>> check_reward(JpegSize(), Media(torch.rand(2, 1, 3, 16, 16)), Prompts(("a", "b")))
    """
    given = Media(media.pixels.clone().requires_grad_(), media.fps)
    scores = reward.score(given, prompts)
    _check_untouched(reward, given, media)
    _check_form(reward, scores, len(media))
    _check_range(reward, scores)
    _check_same("a second call", reward, scores, reward.score(media, prompts), exact=True)
    if reward.spec.kind == "pointwise":
        _check_same("row by row", reward, scores, _row_by_row(reward.score, media, prompts), exact=False)
    if reward.spec.differentiable:
        _check_gradient(reward, media, prompts, scores)
    else:
        _check_refuses_gradient(reward, media, prompts)


def _require(reward: Reward, holds: bool, broken: str) -> None:
    if not holds:
        raise AssertionError(f"reward {reward.spec.name!r} {broken}")


def _check_untouched(reward: Reward, given: Media, before: Media) -> None:
    _require(reward, torch.equal(given.pixels, before.pixels), "changed its input; work on a copy")


def _check_form(reward: Reward, scores: Scores, count: int) -> None:
    for part, tensor in {"values": scores.values, **scores.components}.items():
        form = f"{tuple(tensor.shape)} {tensor.dtype}"
        _require(reward, form == f"({count},) torch.float32", f"gave {part} {form}; give ({count},) torch.float32")
        _require(reward, not tensor.requires_grad, f"gave {part} with a gradient from score(); detach, or use no_grad")
    form = f"{tuple(scores.valid.shape)} {scores.valid.dtype}"
    _require(reward, form == f"({count},) torch.bool", f"gave valid {form}; give ({count},) torch.bool")
    _require(
        reward, bool(scores.valid.any()), "could judge no row, so nothing was checked; give media that it can judge"
    )


def _check_range(reward: Reward, scores: Scores) -> None:
    values = scores.values[scores.valid]
    low, high = (
        bound if bound is not None else sign for bound, sign in zip(reward.spec.range, (-torch.inf, torch.inf))
    )
    _require(reward, bool(values.isfinite().all()), f"gave values that are not finite in valid rows: {values.tolist()}")
    inside = bool(((values >= low) & (values <= high)).all())
    _require(reward, inside, f"gave values outside of its range [{low}, {high}]: {values.tolist()}")


def _check_same(case: str, reward: Reward, first: Scores, second: Scores, exact: bool) -> None:
    rtol, atol = (0.0, 0.0) if exact else (RTOL, ATOL)
    _require(reward, torch.equal(first.valid, second.valid), f"judged other rows in {case}")
    for part, tensor in {"values": first.values, **first.components}.items():
        other = {"values": second.values, **second.components}[part]
        same = torch.allclose(tensor[first.valid], other[first.valid], rtol=rtol, atol=atol, equal_nan=part != "values")
        _require(reward, same, f"gave other {part} in {case}: {tensor.tolist()} became {other.tolist()}")


def _row_by_row(score: Callable[[Media, Prompts], Scores], media: Media, prompts: Prompts) -> Scores:
    parts = [score(media.take([row]), prompts.take([row])) for row in range(len(media))]

    def join(pick: Callable[[Scores], Tensor]) -> Tensor:
        return torch.cat([pick(p).reshape(-1) for p in parts])

    components = {name: join(lambda p, name=name: p.components[name]) for name in parts[0].components}  # type: ignore[misc]
    return Scores(join(lambda p: p.values), components, join(lambda p: p.valid))


def _check_gradient(reward: Reward, media: Media, prompts: Prompts, plain: Scores) -> None:
    given = Media(media.pixels.clone().requires_grad_(), media.fps)
    scores = reward.score_with_grad(given, prompts)
    _check_untouched(reward, given, media)
    _check_same("score_with_grad", reward, plain, scores, exact=False)
    _require(reward, scores.values.requires_grad, "says that it is differentiable, but its values carry no gradient")
    (gradient,) = torch.autograd.grad(scores.values[scores.valid].sum(), given.pixels)
    _require(reward, bool(gradient.isfinite().all()), "has a gradient that is not finite")
    flat = gradient[scores.valid].flatten(1).abs().amax(1) == 0
    _require(reward, not bool(flat.any()), f"has a gradient of zero in {int(flat.sum())} of {len(flat)} valid rows")


def _check_refuses_gradient(reward: Reward, media: Media, prompts: Prompts) -> None:
    try:
        reward.score_with_grad(media, prompts)
    except InputError:
        return
    _require(reward, False, "has score_with_grad, but spec.differentiable is False; set it to True or leave it out")
