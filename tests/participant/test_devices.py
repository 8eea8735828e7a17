"""A device that this machine lacks is told in a sentence, before anything is loaded or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from federations import small

from h2tune.comparison.compare import compare
from h2tune.config import Experiment
from h2tune.federation import run
from h2tune.participant import devices
from h2tune.participant.base_models import ModelPool
from h2tune.participant.devices import devices_here, missing_device
from h2tune.participant.errors import ModelError
from h2tune.plan import make_plan
from h2tune.trained import load_trained
from h2tune.utils.files import StoreError

AWAY = [kind for kind in ("mps", "xpu", "hpu", "npu") if missing_device(kind)] + ["cuda:77"]


def on(device: str) -> Experiment:
    return small(rounds=1, method="local", device=device)


@pytest.mark.parametrize("device", AWAY)
def test_a_run_and_its_plan_say_that_there_is_no_such_device(device: str, tmp_path: Path) -> None:
    said = f"device: there is no {device} on this machine; there is cpu"
    with pytest.raises(ModelError, match=said):
        run(on(device), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists() and not (tmp_path / "run" / "config.yaml").exists()
    plan = make_plan(on(device))  # the run may be on another machine
    assert not plan.problems and any(text.startswith(said) for text in plan.warnings)
    with pytest.raises(ModelError, match=said):  # the way of every command that loads a model
        ModelPool(device).get("zoo:gpt2")


def test_a_run_goes_on_after_a_device_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        run(on(AWAY[-2]), tmp_path / "run")
    assert run(on("cpu"), tmp_path / "run")


def test_a_comparison_ends_before_its_first_run(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(on("cuda:77").to_yaml())
    with pytest.raises(ModelError, match="there is no cuda:77"):
        compare(tmp_path / "f.yaml", ["local"], 1, tmp_path / "out", jobs=1)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_was_trained_on_another_device_says_how_it_is_used_here(tmp_path: Path) -> None:
    run(on("cpu"), tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda:77"))
    with pytest.raises(StoreError, match=r"there is no cuda:77 .* write device: auto in .*config\.yaml"):
        load_trained(tmp_path / "run", "c0")
    assert load_trained(tmp_path / "run", "c0", device="cpu")


def test_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_here()[:3] == ["cpu", "cuda:0", "cuda:1"]
    assert missing_device("cuda") is None and missing_device("cuda:1") is None
    assert "there is cpu, cuda:0, cuda:1" in str(missing_device("cuda:2"))


def test_packages_that_bring_devices_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = type(
        "Npu", (), {"is_available": staticmethod(lambda: True), "device_count": staticmethod(lambda: 1)}
    )
    monkeypatch.setattr(devices, "is_npu_available", lambda: True)
    monkeypatch.setattr(torch, "npu", module, raising=False)
    assert missing_device("npu") is None and missing_device("npu:0") is None and missing_device("npu:1")
