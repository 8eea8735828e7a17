from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from report_runs import client, metrics, three

from h2tune.report.read import ReportError, read_run
from h2tune.utils.numbers import number

WriteRun = Callable[..., Path]


def test_reads_what_is_there(write_run: WriteRun) -> None:
    run = read_run(write_run(three()))
    assert [entry.name for entry in run.clients] == ["hospital", "bank", "factory"]
    hospital = run.clients[0]
    assert hospital.gain() == pytest.approx(0.14)
    assert hospital.in_rounds.up == 5 * 24_620 and hospital.setup.down == 64_210
    assert run.rounds_done == run.rounds == 5 and run.config == "name: three-trades\n"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, 1e200, None, "7", True, [1]])
def test_only_finite_numbers_count(value: object) -> None:
    assert number(value) is None


def test_a_cut_last_event_is_counted_not_fatal(write_run: WriteRun) -> None:
    warning = {"time": "", "event": "warning", "round": 1, "client": None, "text": "hm"}
    run = read_run(write_run(three(), (warning, "[1]\n", '{"time": "2026-01-')))
    assert [event.text for event in run.events] == ["hm"] and run.unreadable == 2


def test_ragged_and_wrong_values_are_filled(write_run: WriteRun) -> None:
    entry = client(0) | {"relation": [[1, 2], [3], "x"], "rounds": [{"loss": 3}, 7], "base": 3, "agreement": []}
    read = read_run(write_run(metrics({"a": entry}))).clients[0]
    assert read.relation == ((1, 2), (3, None))
    assert read.rounds == () and read.base is None and read.agreement is None


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"schema": 2})])
def test_damaged_or_newer_metrics_are_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ReportError, match=r"metrics\.json"):
        read_run(tmp_path)


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="not a run directory"):
        read_run(tmp_path / "nothing")
