"""`plan --json` prints JSON also where the file has mistakes, and ends with the same exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from federations import small
from typer.testing import CliRunner

from h2tune.cli.app import app
from h2tune.vertical.demo import write_demo


def planned(file: Path) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON, and what was said to the reader."""
    done = CliRunner().invoke(app, ["plan", str(file), "--json"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("clients: 7\n", ["clients: should be a list, not 7"]),
        ("- 1\n", ["The config must be a mapping with the key `clients`."]),
        (None, ["There is no config file {file}."]),
    ],
)
def test_a_file_that_is_no_federation(text: str | None, problems: list[str], tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    if text is not None:
        file.write_text(text)
    code, found, said = planned(file)
    expected = [problem.format(file=file) for problem in problems]
    assert code == 1 and found["problems"] == expected and f"error: {expected[0]}" in said
    (tmp_path / "good.yaml").write_text(small(rounds=1).to_yaml())
    assert found.keys() == planned(tmp_path / "good.yaml")[1].keys()
    assert found["clients"] == found["warnings"] == found["leaves"] == found["privacy"] == []


def test_mistakes_in_keys_and_in_data_stand_together(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    text = small(rounds=1).to_yaml().replace("rounds: 1", "rounds: 0").replace("train: demo:", "train: nowhere-", 1)
    file.write_text(text)
    code, found, said = planned(file)
    assert code == 1 and found["problems"][0] == "rounds: should be 1 or more, not 0" and not found["clients"]
    assert len(found["problems"]) > 1 and "nowhere-" in found["problems"][1] and said.startswith("error: rounds")


def test_a_vertical_file(tmp_path: Path) -> None:
    file = write_demo(tmp_path / "data")
    code, right, _ = planned(file)
    assert code == 0 and right["problems"] == [] and right["parties"]
    file.write_text(file.read_text() + "rounds: 0\n" if "rounds:" not in file.read_text() else "parties: 3\n")
    code, found, said = planned(file)
    assert code == 1 and found["problems"] and found["parties"] == [] and found.keys() == right.keys()
    assert f"error: {found['problems'][0]}" in said
