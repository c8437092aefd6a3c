"""What is read out of a judge's words, wherever it runs: token probabilities, and JSON that must satisfy a schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_BLOCK = re.compile(r"\s*```(?:json)?\s*((?:(?!```).)*?)\s*```\s*", re.DOTALL)


def merge(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Token → log-probability; tokens of different number that read the same add their probabilities.

    Raises:
        ValueError: a log-probability is NaN.

    Example:
        >>> round(math.exp(merge([("a", math.log(0.5)), ("b", -3.0), ("a", math.log(0.25))])["a"]), 3)
        0.75
    """
    merged: dict[str, float] = {}
    for token, value in pairs:
        merged[token] = float(np.logaddexp(merged.get(token, -math.inf), value))
        if math.isnan(merged[token]):
            raise ValueError(f"the log-probability of {token!r} is not a number")
    return merged


def unfenced(text: str) -> str:
    r"""What a text holds that is nothing but one code block, or the text.

    Example:
        >>> unfenced('```json\n{"score": 4}\n```'), unfenced('Score: ```4```')
        ('{"score": 4}', 'Score: ```4```')
    """
    block = _BLOCK.fullmatch(text)
    return block[1] if block else text


def mismatch(text: str, schema: Mapping[str, Any]) -> str:
    """Why a text, bare or in one code block, does not satisfy a JSON schema; empty when it does.

    Read are `type`, `enum`, `required`, `properties`, `items`, `minimum`, `maximum`, `minItems` and `maxItems`; other
    keywords are a matter of the server that was given the schema.

    Example:
        >>> mismatch('{"score": 7}', {"type": "object", "properties": {"score": {"type": "integer", "maximum": 5}}})
        'score is 7, above 5'
    """
    try:
        value = json.loads(unfenced(text), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return f"the answer is no JSON: {error}"
    return next(_problems(value, schema, "the answer"), "")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _problems(value: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    kinds = schema.get("type", list(_KINDS))
    if not any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        yield f"{where} is {json.dumps(value):.60}, not of type {kinds}"
    elif value not in schema.get("enum", [value]):
        yield f"{where} is {json.dumps(value):.60}, not one of {schema['enum']}"
    elif isinstance(value, dict):
        yield from (f"{where} has no {key!r}" for key in schema.get("required", ()) if key not in value)
        for key, inner in schema.get("properties", {}).items():
            if key in value:
                yield from _problems(value[key], inner, key)
    elif isinstance(value, list):
        yield from _outside(len(value), schema.get("minItems"), schema.get("maxItems"), f"the length of {where}")
        for index, item in enumerate(value):
            yield from _problems(item, schema.get("items", {}), f"{where}[{index}]")
    elif _is(value, "number"):
        yield from _outside(value, schema.get("minimum"), schema.get("maximum"), where)


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _KINDS[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def _outside(value: float, low: float | None, high: float | None, where: str) -> Iterator[str]:
    if low is not None and value < low:
        yield f"{where} is {value}, below {low}"
    if high is not None and value > high:
        yield f"{where} is {value}, above {high}"
