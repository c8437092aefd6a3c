"""The base of every config section: frozen, strict, and an unknown key names the nearest one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from visalign.types import InputError


class Section(BaseModel):
    """A part of a config; lives beside the code that it configures."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


S = TypeVar("S", bound="Section")


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean …?` for a misspelt word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def parse(kind: type[S], values: dict[str, Any]) -> S:
    """A section from plain values.

    Raises:
        InputError: a key is unknown (the nearest known one is named) or a value is not allowed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_explain(kind, e) for e in error.errors())) from None


def _explain(kind: type[BaseModel], error: Any) -> str:
    path = [str(p) for p in error["loc"]]
    if error["type"] != "extra_forbidden":
        return f"{'.'.join(path) or 'config'}: {error['msg']} (got {error['input']!r})"
    known = _fields_at(kind, path[:-1])
    return f"unknown key {'.'.join(path)!r}.{nearest(path[-1], known)} Allowed here: {', '.join(known)}"


def _fields_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    for name in path:
        inner = kind.model_fields[name].annotation if name in kind.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        kind = inner
    return list(kind.model_fields)
