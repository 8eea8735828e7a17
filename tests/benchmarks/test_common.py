"""A benchmark's JSON says what it was measured on."""

from __future__ import annotations

import importlib.util
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest
import torch

FILE = Path(__file__).parent.parent.parent / "benchmarks" / "common.py"


@pytest.fixture
def common() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_common", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_carry_commit_date_processor_and_threads(
    common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["/somewhere/step.py", "--quick"])
    monkeypatch.setattr(common, "commit", lambda: "0123abc with changes")
    common.write("step", {"seconds": 1.5})
    found = json.loads((tmp_path / "results" / "step.json").read_text())
    assert found["command"] == "python benchmarks/step.py --quick" and found["seconds"] == 1.5
    assert found["commit"] == "0123abc with changes"
    assert abs(datetime.now(UTC) - datetime.fromisoformat(found["date"])) < timedelta(minutes=1)
    assert found["machine"]["processor"] and found["machine"]["threads"] == torch.get_num_threads()


def test_a_command_names_no_folder_of_the_machine(common: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    script = FILE.parent / "speed" / "many.py"
    monkeypatch.setattr(sys, "argv", [str(script), "/home/someone/svamp", "--models", "/data/smollm2", "--seeds", "5"])
    assert common.command() == "python benchmarks/speed/many.py svamp --models smollm2 --seeds 5"


def test_the_commit_is_none_outside_a_repository(
    common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "__file__", str(tmp_path / "common.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert common.commit() is None
