"""The arrows of the floor plan: who may import whom, read from the sources without importing them."""

import ast
import os
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BANKS = ("pipelines", "rewards")
FLOOR = {"process", "kernels", "advantages", "aggregation", "uncertainty"}
# The core reaches banks by name, through the registry; these few know the way in.
DOORS = {
    "api": {"visalign.pipelines.loading"},
    "batch.judging": {"visalign.rewards.lifting"},
    "scoring": {"visalign.rewards.base", "visalign.rewards.function", "visalign.rewards.lifting"},
    "shapes.judges.blip": {
        "visalign.rewards.blip",
        "visalign.rewards.heads",
        "visalign.rewards.imagereward",
        "visalign.rewards.preprocess",
    },
    "shapes.judges.blip2": {"visalign.rewards.hummingbird", "visalign.rewards.preprocess"},
    "shapes.judges.mps": {"visalign.rewards.mps", "visalign.rewards.mps_network"},
    "shapes.judges.qwen": {"visalign.rewards.hpsv3", "visalign.rewards.token_head", "visalign.rewards.videoalign"},
    "sizing": {"visalign.pipelines.families"},
}
INNER = {
    "rewards/shapes.py": {"visalign.shapes"},
    "rewards/palette.py": {"visalign.shapes"},
    "rewards/weights.py": {"visalign.shapes"},
}


def imports(path):
    """Every module a file imports at run time, `from package import module` as package.module too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unread = [node for node in ast.walk(tree) if is_type_checking(node)]
    hidden = {id(inner) for node in unread for child in node.body for inner in ast.walk(child)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            found |= {resolve(node.module, alias.name) for alias in node.names}
    return found


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def resolve(module, name):
    """`visalign.shapes` for both `from visalign import shapes` and `from visalign.shapes import model_path`."""
    path = ROOT.joinpath(*module.split("."))
    is_module = path.is_dir() and ((path / name).is_dir() or (path / f"{name}.py").is_file())
    return f"{module}.{name}" if is_module else module


def own(found):
    return {name for name in found if name.split(".")[0] == "visalign"}


def below(name, allowed):
    return any(name == a or name.startswith(f"{a}.") for a in allowed)


def sources(folder):
    return sorted(p for p in (ROOT / folder).rglob("*.py") if p == p.resolve())  # each file once, by its real path


def name_of(path):
    return path.relative_to(ROOT / "visalign").with_suffix("").as_posix().replace("/", ".")


CORE = sources("visalign")


def test_types_is_the_ground_floor():
    assert own(imports(ROOT / "visalign" / "types.py")) == set()


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_the_first_floor_stands_on_torch_types_and_itself(room):
    found = imports(ROOT / "visalign" / f"{room}.py")
    assert own(found) <= {f"visalign.{name}" for name in ("types", *FLOOR)}
    outside = {name.split(".")[0] for name in found - own(found)}
    assert outside - set(sys.stdlib_module_names) <= {"torch"}


@pytest.mark.parametrize("bank", BANKS)
def test_banks_know_types_process_and_their_siblings(bank):
    for path in sources(bank):
        allowed = {"visalign.types", "visalign.process", f"visalign.{bank}"}
        allowed |= INNER.get(path.relative_to(ROOT).as_posix(), set())
        for name in own(imports(path)):
            assert below(name, allowed), f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_reaches_banks_by_name(path):
    if path.name == "__init__.py" and path.parent.name == "visalign":
        return
    for name in own(imports(path)):
        if name.split(".")[1:2] and name.split(".")[1] in BANKS:
            assert name in DOORS.get(name_of(path), set()), f"{name_of(path)} imports {name}; use the registry"


def test_doors_are_used():
    for room, doors in DOORS.items():
        assert doors <= imports(ROOT / "visalign" / f"{room.replace('.', '/')}.py")


def test_methods_do_not_know_the_loop():
    forbidden = {"training", "preparing", "learning", "experience", "runs", "cli", "scoring"}
    for path in sources("visalign/methods"):
        assert not {name.split(".")[1] for name in own(imports(path)) if "." in name} & forbidden, path


def test_nobody_imports_the_command_line():
    for path in CORE:
        if not name_of(path).startswith(("cli", "__main__")):
            assert not any(name.startswith("visalign.cli") for name in imports(path)), path


@pytest.mark.parametrize("name", ["pipelines", "rewards", "configs"])
def test_links_are_there_and_relative(name):
    link = ROOT / "visalign" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert (link / "__init__.py").is_file()


@pytest.mark.parametrize("bank", BANKS)
def test_banks_refuse_another_name(bank):
    assert f'if __name__ != "visalign.{bank}"' in (ROOT / bank / "__init__.py").read_text(encoding="utf-8")


def test_packages_lists_every_folder():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    inner = {p.parent.relative_to(ROOT) for p in (ROOT / "visalign").rglob("__init__.py")}
    outer = {p.parent.relative_to(ROOT) for name in (*BANKS, "configs") for p in (ROOT / name).rglob("__init__.py")}
    links = {Path("visalign") / name for name in (*BANKS, "configs")}
    folders = {p for p in inner if p not in links}
    names = {".".join(p.parts) for p in folders} | {".".join(("visalign", *p.parts)) for p in outer}
    assert set(tools["packages"]) == names
    assert set(tools["package-dir"].items()) == {("visalign", "visalign")} | {
        (f"visalign.{name}", name) for name in (*BANKS, "configs")
    }
