"""Strict keys, overrides, schema; every shipped YAML loads."""

from pathlib import Path

import pytest

from visalign.config import dump_yaml, load_config, schema
from visalign.registry import load, names
from visalign.types import InputError

SHIPPED = sorted(p for p in Path("configs").rglob("*.yaml") if not {"models", "judges"} & set(p.parts))
MINIMAL = {"method": {"name": "nft"}}


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_every_shipped_config_loads_and_survives_a_round_trip(path, tmp_path):
    config = load_config(path)
    copy = tmp_path / "any.extension"
    copy.write_text(dump_yaml(config))
    assert load_config(copy) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimiser": {"lr": 1}}, "Did you mean 'optimizer'"),
        ({"optimizer": {"learning_rat": 1}}, "Allowed here: lr"),
        ({"train": {"group_sizes": 4}}, "Did you mean 'group_size'"),
        ({"method": {"name": "nft", "betas": 1}}, "Did you mean 'beta'"),
        ({"method": {"name": "ntf"}}, "Did you mean 'nft'"),
        ({"method": "nft"}, "method needs a name"),
        ({"optimizer": {"lr": -1}}, r"optimizer\.lr"),
        ({"rewards": ["shapes"]}, "name: weight"),
    ],
)
def test_wrong_values_are_explained(values, message):
    with pytest.raises(InputError, match=message):
        load_config(MINIMAL | values)


def test_overrides_and_yaml_mix():
    config = load_config(
        MINIMAL, ["optimizer.lr=1e-4", "train.group_size=12", "rollout.window.size=2", "output=runs/x"]
    )
    assert config.optimizer.lr == 1e-4
    assert config.train.group_size == 12
    assert config.rollout.window.size == 2
    assert config.output == "runs/x"
    with pytest.raises(InputError, match="key=value"):
        load_config(MINIMAL, ["lr"])


def test_files_that_are_no_config_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(InputError, match="not a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,")
    with pytest.raises(InputError, match="not YAML"):
        load_config(tmp_path / "bad.yaml")


def test_schema_knows_every_method():
    described = {m["properties"]["name"]["const"] for m in schema()["properties"]["method"]["anyOf"]}
    assert described == set(names("methods"))


@pytest.mark.parametrize("kind", ["methods", "kernels", "rewards", "models"])
def test_every_name_of_the_registry_loads(kind):
    assert all(callable(load(kind, name)) for name in names(kind))


def test_unknown_names_name_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'jpeg_size'"):
        load("rewards", "jpegsize")
    with pytest.raises(InputError, match="cannot be imported"):
        load("rewards", "no_such_module:reward")
    with pytest.raises(InputError, match="has no 'shaps'"):
        load("rewards", "visalign.rewards.shapes:shaps")
