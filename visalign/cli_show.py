"""The commands that show: list, describe, config."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.table import Table
from rich.text import Text

from visalign import registry, shapes
from visalign.config import RunConfig, dump_yaml, load_config, schema
from visalign.progress import console
from visalign.section import nearest
from visalign.types import InputError

Entry = dict[str, str]


def list_kind(kind: str, pattern: str) -> None:
    """Print a table of all of a kind."""
    found = registry.names(kind, pattern)
    if not found:
        raise InputError(f"no {kind} match {pattern!r}; known are {', '.join(registry.names(kind)) or 'none yet'}")
    rows = [entry(kind, name) for name in found]
    columns = dict.fromkeys(column for row in rows for column in row)
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(row.get(column, "")) for column in columns))
    console().print(table)


def entry(kind: str, name: str) -> Entry:
    """What a line of the table says; of an entry that cannot be imported, why."""
    try:
        thing = registry.load(kind, name)
    except InputError as error:
        return {"name": name, "what it is": str(error)}
    if kind == "models":
        return _model(name, thing)
    return {"name": name} | (_facts(thing) if kind == "rewards" else {}) | {"what it is": first_line(thing)}


def first_line(thing: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _facts(reward: Any) -> Entry:
    spec = vars(reward).get("spec")
    if spec is None:
        return dict.fromkeys(("media", "gradient", "range", "needs", "offline", "licence", "memory"), "")
    low, high = ("" if end is None else f"{end:g}" for end in spec.range)
    return {
        "media": " ".join(spec.media),
        "gradient": "yes" if spec.differentiable else "no",
        "range": f"{low} … {high}" if low or high else "",
        "needs": " ".join((*spec.inputs, *([f"visalign[{spec.extra}]"] if spec.extra else []))),
        "offline": _shipped(spec.tiny) or ("itself" if not spec.weights else ""),
        "licence": " ".join(dict.fromkeys(w.licence for w in spec.weights)),
        "memory": f"{spec.memory_gb:g} GB" if spec.memory_gb else "",
    }


def _shipped(judge: str) -> str:
    if not judge:
        return ""
    made = (shapes.judge_path(judge.removeprefix("shapes/")) / "measured.json").is_file()
    return judge if made else f"{judge}, not made yet"


def _model(name: str, locate: Any) -> Entry:
    folder = locate(name.removeprefix("shapes/"))
    index = folder / "model_index.json"
    if not index.is_file():
        return {"name": name, "pipeline": "not made yet", "size": "", "folder": str(folder)}
    size = sum(p.stat().st_size for p in folder.rglob("*.safetensors")) / 1e6
    kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    return {"name": name, "pipeline": kind, "size": f"{size:.1f} MB", "folder": str(folder)}


def describe(name: str) -> None:
    """Print what a thing is, its options and an example."""
    text = description(*find(name))
    print(text)


def find(name: str) -> tuple[str, str]:
    """(kind, name) of a name: a section of the config, or an entry of any list.

    Raises:
        InputError: nothing has this name; the nearest is named.
    """
    kinds = [kind for kind in registry.TABLES if name in registry.table(kind)]
    if kinds:
        return kinds[0], name
    if name in RunConfig.model_fields:
        return "sections", name
    if ":" in name:
        return "rewards", name
    known = [n for kind in registry.TABLES for n in registry.names(kind)] + list(RunConfig.model_fields)
    raise InputError(
        f"nothing is called {name!r}.{nearest(name, known)} See: visalign list rewards|methods|kernels|models"
    )


def description(kind: str, name: str) -> str:
    """The page of one thing."""
    if kind == "sections":
        return _section(name)
    thing = registry.load(kind, name)
    parts = [f"{name} ({registry.singular(kind)})", inspect.getdoc(thing) or ""]
    if kind == "models":
        parts = [f"{name} (model)", "\n".join(f"{k}: {v}" for k, v in _model(name, thing).items())]
    if kind == "methods":
        parts += [inspect.getdoc(inspect.getmodule(thing)) or "", "Options of method:", options(thing.Config)]
    if kind == "searches":
        parts += [inspect.getdoc(inspect.getmodule(thing)) or "", "Options (--set key=value):", options(thing.Config)]
    if kind == "rewards" and inspect.isclass(thing):
        parts += ["Facts:", "\n".join(f"  {k}: {v}" for k, v in _facts(thing).items() if v)]
    return "\n\n".join([*(p for p in parts if p), "Example:", textwrap.indent(example(kind, name, thing), "  ")])


def _section(name: str) -> str:
    kind = RunConfig.model_fields[name].annotation
    if not (inspect.isclass(kind) and issubclass(kind, BaseModel)) or name == "method":
        field = RunConfig.model_fields[name]
        return f"{name} (config key)\n\n{field.description or ''}\n\ndefault: {_default(field)}"
    return f"{name} (config section)\n\n{first_line(kind)}\n\n{options(kind)}"


def options(kind: type[BaseModel]) -> str:
    """Every field of a section with its default and what it does."""
    lines = []
    for name, field in kind.model_fields.items():
        if name == "name":
            continue
        lines.append(f"  {name}: {_default(field)}  ({_type(field.annotation)})")
        if field.description:
            lines.append(textwrap.fill(field.description, 100, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines) or "  none"


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    shown = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return yaml.safe_dump(shown, default_flow_style=True, width=10_000).replace("\n...", "").strip()


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    text = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    return text.replace("typing.", "").replace("NoneType", "None")


def example(kind: str, name: str, thing: Any) -> str:
    """YAML that uses it, or the command of a search."""
    if kind == "searches":
        return f'visalign optimize "a red circle" --reward palette --method {name}'
    if kind == "methods":
        values: Any = {"method": thing.Config.model_validate({"name": name}).model_dump(mode="json")}
    elif kind == "rewards":
        values = {"rewards": {name: {"weight": 1.0, "params": _parameters(thing)}}}
    elif kind == "kernels":
        values = {"rollout": {"kernel": name, "eta": 0.7}}
    else:
        values = {"model": {"name": name}}
    return yaml.safe_dump(values, sort_keys=False).strip()


def _parameters(reward: Any) -> dict[str, Any]:
    found = list(inspect.signature(reward).parameters.values())
    own = found if inspect.isclass(reward) else found[2:]
    plain = (bool, int, float, str, type(None))
    return {p.name: p.default for p in own if isinstance(p.default, plain)}


def config(source: str | None, overrides: Sequence[str], as_schema: bool) -> None:
    """Print the schema, or a config with all its defaults."""
    if as_schema:
        print(json.dumps(schema(), indent=2))
    elif source is None:
        raise InputError("give a YAML file to resolve, or --schema")
    else:
        print(dump_yaml(load_config(source, overrides)), end="")
