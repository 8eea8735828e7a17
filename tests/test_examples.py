"""The examples are what a stranger runs first: their data is there, they plan without a problem, and they run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from notebooks import execute
from run_quickstart import PAGE, PAIR, refreshed
from typer.testing import CliRunner

from h2tune.cli.app import app

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))
LOCAL = [file for file in FILES if file.stem != "network"]  # that one needs a server and two clients: tests/transport
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_example_plans_without_a_problem(file: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(file), "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    # Of the quick start one client shares nothing, and the page says so.
    known = [
        "clinic: with a classification head (kind: classify) a model predicts no words and shares nothing; kind: choice or generate shares"
    ]
    assert plan["problems"] == [] and plan["warnings"] == (known if file.stem == "tickets" else [])


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_example_says_its_command_and_what_to_expect(file: Path) -> None:
    head = re.match(r"(?:#.*\n)+", file.read_text(encoding="utf-8"))
    assert head and f"examples/{file.name}" in head[0]
    assert "Expect" in head[0]
    assert ".." not in re.sub(r"^#.*$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_data_is_what_its_generator_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLES / "make_data.py", tmp_path], check=True)
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert written == {file.name: file.read_bytes() for file in (EXAMPLES / "data").iterdir()}


def test_notebooks_hold_code_that_parses_and_the_outputs_of_a_run() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        for number, cell in enumerate(cells, 1):
            compile("".join(cell["source"]), path.name, "exec")
            assert cell["execution_count"] == number


@pytest.mark.slow
@pytest.mark.parametrize("file", LOCAL, ids=lambda f: f.stem)
def test_example_runs(file: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(file), "--out", str(tmp_path / "run"), "--quiet"])
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert all(client["final"]["nats"] < client["base"]["nats"] for client in metrics["clients"].values())


@pytest.mark.slow
def test_the_quick_start_can_be_followed_to_the_letter(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    page = PAGE.read_text(encoding="utf-8")
    assert len(PAIR.findall(page)) == 5
    assert "federated" in refreshed(page, tmp_path)


def bytes_told(notebook: dict[str, Any]) -> list[str]:
    """The counts of bytes that a notebook's cells have printed."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return re.findall(r"[\d,]+ bytes", "".join("".join(output["text"]) for output in outputs))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda f: f.stem)
def test_notebook_runs_and_tells_the_bytes_of_now(path: Path) -> None:
    fresh = execute(path)
    assert any(cell.get("outputs") for cell in fresh["cells"])
    # Accuracies differ between processors; what is sent does not.
    assert bytes_told(fresh) == bytes_told(json.loads(path.read_text(encoding="utf-8")))
