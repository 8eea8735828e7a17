"""Data that are replaced between a stop and --resume, as a person at the command line meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from model_folders import ROWS, TASKS, model_folder, one_client, write_rows
from typer.testing import CliRunner

from h2tune.cli.app import app


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.stderr


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    experiment = one_client(tmp_path, model_folder(tmp_path / "model", "bert-cls"), TASKS["classify"])
    (tmp_path / "f.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    code, stderr = call("run", str(tmp_path / "f.yaml"), "--out", str(tmp_path / "out"), "--quiet")
    assert code == 0, stderr
    text = (tmp_path / "f.yaml").read_text(encoding="utf-8").replace("rounds: 1", "rounds: 2")
    (tmp_path / "f.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def resume(folder: Path, *changed: str) -> tuple[int, str]:
    options = [part for key in changed for part in ("--changed", key)]
    return call("run", str(folder / "f.yaml"), "--out", str(folder / "out"), "--resume", "--quiet", *options)


@pytest.mark.parametrize("rows", [ROWS[:5], [row | {"text": row["text"] + " now"} for row in ROWS]])
def test_other_data_are_refused_before_anything_is_done(begun: Path, rows: list[dict[str, str]]) -> None:
    before = (begun / "out" / "events.jsonl").read_bytes()
    write_rows(begun / "rows.jsonl", rows)
    code, stderr = resume(begun, "rounds")
    assert code == 1 and "have changed since it began: c.test, c.train, c.validation" in stderr
    assert "--changed data" in stderr
    assert (begun / "out" / "events.jsonl").read_bytes() == before


def test_the_same_data_go_on_and_meant_changes_are_noted(begun: Path) -> None:
    assert resume(begun, "rounds")[0] == 0
    write_rows(begun / "rows.jsonl", [row | {"text": row["text"] + " now"} for row in ROWS[:5]])
    text = (begun / "f.yaml").read_text(encoding="utf-8").replace("rounds: 2", "rounds: 3")
    (begun / "f.yaml").write_text(text, encoding="utf-8")
    code, stderr = resume(begun, "rounds", "data")
    assert code == 0, stderr
    events = [json.loads(line) for line in (begun / "out" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = json.loads((begun / "out" / "metrics.json").read_text(encoding="utf-8"))["clients"]["c"]
    assert (metrics["status"], metrics["n_train"]) == ("ok", 5)
    assert any("resumed with changed data: c.test, c.train, c.validation" in event["text"] for event in events)


def test_a_key_that_no_config_has_is_no_meant_change(begun: Path) -> None:
    code, stderr = resume(begun, "rounds", "trainig.steps")
    assert code == 1 and "--changed trainig.steps: there is no such key" in stderr
