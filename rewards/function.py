"""A user's plain function as a reward: f(images, prompts, **columns) → one number, or None, an image."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from visalign.rewards.base import Reward, RewardSpec
from visalign.rewards.pil import to_pil
from visalign.types import InputError, Media, Prompts, RunError, Scores

Judge = Callable[..., Any]


class FunctionReward(Reward):
    """Calls `f(images, prompts, **columns)`: pillow images, texts, and a list for each column that the function names.

    The function returns B numbers (a list, an array or a tensor); None marks a row that it does not judge: an invalid
    one. It gets the columns that it names, all of them if it takes `**columns`. Videos come in by their frames.

    Args:
        function: the user's function.
        name: how messages call it.
        params: further keyword arguments, the same at every call.

    Raises:
        InputError: the function names a column that no prompt has, and gives it no default.
        RunError: it returns something other than one number or None an image.

    Example:
        >>> def brightness(images, prompts):
        ...     return [image.convert("L").getpixel((0, 0)) / 255 for image in images]
        >>> FunctionReward(brightness).score(Media(torch.ones(2, 1, 3, 8, 8)), Prompts(("a", "b"))).values
        tensor([1., 1.])
    """

    spec = RewardSpec(name="function", inputs=("prompt",))

    def __init__(self, function: Judge, name: str = "function", params: Mapping[str, Any] | None = None) -> None:
        self.function = function
        self.params = dict(params or {})
        self.spec = RewardSpec(name=name, inputs=("prompt",))

    def score(self, media: Media, prompts: Prompts) -> Scores:
        """Scores of the first frames."""
        columns = _columns(self.function, self.params, prompts, self.spec.name)
        result = self.function(to_pil(media.images), list(prompts.texts), **columns, **self.params)
        numbers = _numbers(result, len(prompts), self.spec.name)
        valid = torch.tensor([n is not None for n in numbers], dtype=torch.bool)
        return Scores(torch.tensor([0.0 if n is None else n for n in numbers]), valid=valid)


def _columns(function: Judge, params: Mapping[str, Any], prompts: Prompts, name: str) -> dict[str, list[Any]]:
    """The columns that the function asks for, each a list of B; None where a row lacks it."""
    known = dict.fromkeys(key for row in prompts.columns for key in row)
    asked = [p for p in list(inspect.signature(function).parameters.values())[2:] if p.name not in params]
    for p in asked:
        if p.name not in known and p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            raise InputError(
                f"reward {name!r} asks for the column {p.name!r}, which no prompt has; columns there are: "
                f"{', '.join(known) or 'none'}. Add the column to the prompts file, or give {p.name!r} a default"
            )
    everything = any(p.kind is p.VAR_KEYWORD for p in asked)
    wanted = set(known) - set(params) if everything else {p.name for p in asked}
    return {key: [row.get(key) for row in prompts.columns] for key in known if key in wanted}


def _numbers(result: Any, count: int, name: str) -> list[float | None]:
    try:
        numbers = [None if n is None else float(n) for n in result]
    except (TypeError, ValueError) as error:
        raise RunError(
            f"reward {name!r} returned {result!r:.80}; return a list with one number (or None) an image"
        ) from error
    if len(numbers) != count:
        raise RunError(f"reward {name!r} returned {len(numbers)} scores for {count} images; return one number an image")
    return numbers
