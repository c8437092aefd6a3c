"""The checks run on this machine, and say what to do where something is wrong."""

import pytest
import torch

from visalign import doctor
from visalign.doctor import Check


def test_this_machine_is_well(capsys, monkeypatch):
    assert doctor.main() == 0
    shown = capsys.readouterr().out
    for name in ("Python", "torch", "diffusers", "attention: SDPA", "disk", "hub", "video"):
        assert name in shown


def test_a_failure_is_exit_code_one(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "run", lambda: [Check("torch", "fail", "operator [x] is missing", "install it again")])
    assert doctor.main() == 1
    assert "operator [x] is missing" in capsys.readouterr().out


def test_torchvision_is_tried_by_an_operator(monkeypatch):
    assert doctor.torch_and_torchvision().status == "ok"

    def broken(*arguments):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torch.ops.torchvision, "nms", broken)
    found = doctor.torch_and_torchvision()
    assert found.status == "fail"
    assert "same index" in found.advice


@pytest.mark.parametrize(
    ("installed", "status"), [(None, "fail"), ("0.39.2", "fail"), ("0.40.0", "ok"), ("1.0.dev0", "ok")]
)
def test_versions(monkeypatch, installed, status):
    monkeypatch.setattr(doctor, "package_version", lambda name: installed)
    assert next(c for c in doctor.packages() if c.name == "diffusers").status == status


def test_a_backend_that_raises_or_differs_is_told_apart():
    def raises(q, k, v):
        raise NotImplementedError("no kernel\nfor this device")

    assert doctor._backend("x", raises, "warn") == Check(
        "attention: x", "warn", "no kernel", "leave model.attention at auto"
    )
    assert "differs from the formula" in doctor._backend("x", lambda q, k, v: v, "fail").found
    assert doctor._backend("SDPA", doctor._sdpa, "fail").status == "ok"


def test_hub_says_offline():
    assert doctor.hub().status == "warn"
