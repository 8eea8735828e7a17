"""Comparisons: the grid, its restart, its figures, and what it says when something does not fit."""

from __future__ import annotations

import csv
import json
import queue
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from h2tune.cli.app import app
from h2tune.cli.compare import DEFAULT
from h2tune.comparison import grid
from h2tune.comparison.cells import TUNING_SEED, UNREAD_TEST, Cell, CompareError, experiment_of, method_in
from h2tune.comparison.compare import compare
from h2tune.config import ConfigError, load_config
from h2tune.methods.registry import MethodError, resolve_method

FILE = """
name: tiny
rounds: 1
rank: 4
anchors: demo
training: {steps: 2, batch_size: 4}
methods: {local: {learning_rate: 0.004}, h2tune: {alternation: joint}}
clients:
  - {name: a, model: "zoo:llama", task: demo-fill, train: "demo:fill?split=train&n=30&seed={seed}",
     test: "demo:fill?split=test&n=8&seed={seed}"}
  - {name: b, model: "zoo:gpt2", task: demo-choice, train: "demo:choice?split=train&n=30&seed={seed}",
     test: "demo:choice?split=test&n=8&seed={seed}"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(FILE)
    return path


def test_each_cell_is_what_the_file_says(file: Path) -> None:
    local = experiment_of(file, Cell("local", 3, n_train=25, rate=0.5))
    assert local.seed == 3 and local.method == {"name": "local"}
    assert [c.learning_rate for c in local.clients] == [0.002, 0.002]
    assert local.training.core_learning_rate == 0.01 and [c.n_train for c in local.clients] == [25, 25]
    assert local.clients[0].train.endswith("seed=3")
    assert experiment_of(file, Cell("h2tune", 0)).method == {"name": "h2tune", "alternation": "joint"}
    assert experiment_of(file, Cell("h2tune-unshared", 0)).method == {"name": "h2tune-unshared"}
    assert load_config(file, seed=7).clients[1].test.endswith("seed=7")
    assert load_config(file).clients[1].test.endswith("seed=0")


def test_a_multiple_of_the_rates_is_one_of_a_clients_own_rate_and_of_a_default_too(file: Path) -> None:
    own = FILE.replace('model: "zoo:llama"', 'model: "zoo:llama", learning_rate: 0.01')
    file.write_text(own.replace('model: "zoo:gpt2"', "model: someone/pretrained"))
    tuned = experiment_of(file, Cell("h2tune", 0, rate=3))
    assert [c.learning_rate for c in tuned.clients] == pytest.approx([0.03, 0.0009])


def test_a_trial_of_a_rate_reads_next_to_no_test_data(file: Path) -> None:
    trial = experiment_of(file, Cell("local", TUNING_SEED, tuning=True))
    assert [c.n_test for c in trial.clients] == [UNREAD_TEST] * 2
    assert [c.n_test for c in experiment_of(file, Cell("local", 0)).clients] == [None, None]


def test_frames_without_sharing_have_the_settings_of_the_files_own_method(file: Path) -> None:
    file.write_text(FILE.replace("rank: 4", "rank: 4\nmethod: {name: h2tune, frames: weights}"))
    assert experiment_of(file, Cell("h2tune-unshared", 0)).method == {
        "name": "h2tune-unshared", "frames": "weights"}  # fmt: skip
    assert experiment_of(file, Cell("colora", 0)).method == {"name": "colora"}


def test_the_method_that_a_file_asks_for_is_among_those_compared(file: Path) -> None:
    plain = yaml.safe_load(file.read_text())
    for method in ("fedit", {"name": "fedit", "mu": 0.1}):
        file.write_text(yaml.safe_dump(plain | {"method": method}))
        assert method_in(file) == "fedit"
    assert method_in("demo") in DEFAULT.split(",")


def test_grid_restarts_where_it_stopped(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = compare(file, ["local"], 1, out, jobs=1)
    stamp = (out / "runs/local/seed-0/metrics.json").stat().st_mtime_ns
    lines: list[str] = []
    both = compare(file, ["local", "fedit", "h2tune"], 1, out, jobs=1, say=lines.append)
    assert (out / "runs/local/seed-0/metrics.json").stat().st_mtime_ns == stamp
    assert "1 of 3 runs are finished already" in lines[0] and "2 runs to go" in lines[1]
    table = both["tables"][0]
    assert [row["method"] for row in table["methods"]] == ["local", "h2tune"]
    assert both["skipped"]["fedit"].startswith("this method averages") and not both["failed"]
    assert "only fit between equal base models" in both["skipped"]["fedit"]
    assert table["methods"][0]["mean"] == first["tables"][0]["methods"][0]["mean"]
    assert json.loads((out / "compare.json").read_text()) == both
    rows = list(csv.DictReader((out / "compare.csv").open()))
    assert [r["method"] for r in rows] == ["local", "h2tune"]
    with pytest.raises(CompareError, match=r"something else: .*rounds.*Use another --out"):
        file.write_text(FILE.replace("rounds: 1", "rounds: 2"))
        compare(file, ["local"], 1, out, jobs=1)


def test_one_failed_run_does_not_stop_the_others(file: Path, tmp_path: Path) -> None:
    file.write_text(FILE + "quorum: 2\n")
    blocked = tmp_path / "out/runs/h2tune/seed-0"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    result = CliRunner().invoke(
        app,
        [
            "compare",
            str(file),
            "--methods",
            "local,h2tune",
            "--seeds",
            "1",
            "--jobs",
            "1",
            "--out",
            str(tmp_path / "out"),
        ],
    )
    assert result.exit_code == 1
    assert "FAILED" in result.output and "failed runs/h2tune/seed-0" in result.output
    page = (tmp_path / "out/compare.html").read_text()
    assert "runs/h2tune/seed-0</bdi></b> failed" in page and "<script" not in page


def test_mistakes_show_before_anything_runs(file: Path, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="Did you mean `fedit`"):
        compare(file, ["local", "fedti"], 1, tmp_path / "out")
    with pytest.raises(ConfigError):
        compare(tmp_path / "missing.yaml", ["local"], 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, ["compare", str(file), "--n-train", "60,many"])
    assert result.exit_code == 1 and "numbers with commas" in result.output


def test_a_killed_comparison_leaves_no_worker_behind(file: Path, tmp_path: Path) -> None:
    file.write_text(FILE.replace("steps: 2", "steps: 5000"))
    command = [
        sys.executable,
        "-m",
        "h2tune",
        "compare",
        str(file),
        "--methods",
        "local",
        "--seeds",
        "1",
        "--jobs",
        "1",
    ]
    parent = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stdout=subprocess.DEVNULL)
    run = tmp_path / "out/runs/local/seed-0/run.json"
    deadline = time.monotonic() + 120
    while not run.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert workers
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_a_run_whose_process_is_killed_is_told_in_a_sentence(file: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "import os, signal\n"
        "from h2tune.methods.base import Method, Settings\n"
        "from h2tune.methods.local import LocalClient, LocalServer\n"
        "class Client(LocalClient):\n"
        "    def train(self, round, payload):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "OWN = Method('toy-killed', Settings, Client, LocalServer, 'is killed')\n"
    )
    with pytest.raises(CompareError, match=r"process of a run is gone.*the same command goes on"):
        compare(file, [f"{own}:OWN"], 1, tmp_path / "out", jobs=1)


def test_a_long_run_says_how_far_it_is(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    told = queue.Queue()
    monkeypatch.setattr(grid, "TELL_EVERY", 0.0)
    monkeypatch.setattr(grid, "_TOLD", [told])
    with grid._passing_on(told, said.append):
        outcome = grid._run(str(file), Cell("h2tune", 0), tmp_path / "out")
    assert outcome.metrics is not None and len(said) == 4  # two clients, two updates each
    assert said[0] == "    h2tune/seed-0: a, round 1, joint 1 of 2"


def test_an_amount_of_data_that_a_client_does_not_have_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="--n-train 5000: a has 30 training rows"):
        compare(file, ["local"], 1, tmp_path / "out", n_train=[20, 5000])
    assert not (tmp_path / "out").exists()


def test_finished_runs_of_other_data_are_not_taken_for_these(file: Path, tmp_path: Path) -> None:
    rows = tmp_path / "test.jsonl"
    row = {"prompt": "Two and two are", "answer": " 4", "gold": "4"}
    rows.write_text(json.dumps(row) + "\n")
    file.write_text(FILE.replace('"demo:fill?split=test&n=8&seed={seed}"', str(rows)))
    compare(file, ["local"], 1, tmp_path / "out")
    rows.write_text(json.dumps(row | {"answer": " 5", "gold": "5"}) + "\n")
    with pytest.raises(CompareError, match=r"seed-0 holds a run of something else: The data of this run have changed"):
        compare(file, ["local"], 2, tmp_path / "out")


def test_finished_runs_of_another_version_of_a_method_are_not_taken_for_these(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(file, ["local"], 1, tmp_path / "out", jobs=1)
    monkeypatch.setattr(resolve_method("local")[0], "version", 3)
    with pytest.raises(CompareError, match=r"seed-0 holds a run of local version 1; .* version 3, .*another --out"):
        compare(file, ["local"], 2, tmp_path / "out", jobs=1)


@pytest.mark.parametrize(("methods", "changes", "said"), [
    ([], {}, "--methods: name one or more"),
    (["local"], {"tune": [1.0, 0.0]}, "--tune 0: .* above 0"),
    (["local"], {"tune": [float("nan")]}, "--tune nan: "),
    (["local"], {"tune": [-1.0]}, "--tune -1: "),
    (["local"], {"n_train": [0]}, "--n-train 0: .* 1 row or more"),
])  # fmt: skip
def test_numbers_that_can_be_none_are_refused(
    methods: list[str], changes: dict[str, list[float]], said: str, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(CompareError, match=said):
        compare(file, methods, 1, tmp_path / "out", **changes)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_amount_given_twice_is_run_once(file: Path, tmp_path: Path) -> None:
    result = compare(file, ["local"], 1, tmp_path / "out", n_train=[20, 20], jobs=1)
    assert [table["n_train"] for table in result["tables"]] == [20] and not result["failed"]
