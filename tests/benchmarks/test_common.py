"""A benchmark's JSON says what it was measured on."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor
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


def test_the_interval_of_a_median_is_the_binomial_one(common: ModuleType) -> None:
    # n, and the first of the values between which the median lies, as tables of the sign test have them
    for count, first in ((1, 1), (3, 1), (5, 1), (6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (15, 4), (20, 6), (50, 18)):
        values = [float(n) for n in range(count, 0, -1)]
        assert common.median_interval(values)[1:] == (first, count + 1 - first), count
    assert common.median_interval([3.0, 1.0, 2.0]) == (2, 1, 3)
    assert (common.interval_name(5), common.interval_name(6)) == ("range of 5", "95 % interval")


def test_what_one_process_adds_another_does_not_lose(common: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cells.json"

    def added(known: dict[str, int], key: str) -> dict[str, int]:
        return known | {key: 1}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: common.amend(path, lambda known: added(known, str(n))), range(24)))
    assert common.read(path).keys() == {str(n) for n in range(24)} and common.read(tmp_path / "none.json") == {}


def test_settings_are_those_that_a_figure_depends_on(common: ModuleType) -> None:
    given = {
        "rate": 0.1,
        "seeds": 3,
        "name": "x",
        "out": Path("/y"),
        "teacher": "/models/smollm2",
        "more": ["/a/b", "zoo:c"],
    }
    settings = common.settings_of(argparse.Namespace(**given, tune=1), "tune")
    assert settings == {"rate": 0.1, "teacher": "smollm2", "more": ["b", "zoo:c"]}
    common.refuse_others({"accuracy": 0.5}, settings, "an older cell")
    common.refuse_others({"settings": settings}, dict(settings), "an equal one")
    with pytest.raises(SystemExit, match=r"lada/0 was made with other settings \(rate: 0.1 there, 0.2 here\)"):
        common.refuse_others({"settings": settings}, settings | {"rate": 0.2}, "lada/0")
