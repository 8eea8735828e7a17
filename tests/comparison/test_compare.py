"""Comparisons: the grid, its restart, its figures, and what it says when something does not fit."""

from __future__ import annotations

import csv
import json
import queue
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from scipy import stats
from typer.testing import CliRunner

from h2tune.cli.app import app
from h2tune.cli.output import print_comparison
from h2tune.comparison import grid
from h2tune.comparison.cells import TUNING_SEED, UNREAD_TEST, Cell, CompareError, Outcome, experiment_of
from h2tune.comparison.compare import best_rates, compare
from h2tune.comparison.statistics import interval, summarise
from h2tune.config import ConfigError, load_config
from h2tune.methods import MethodError
from h2tune.report.comparison_page import render, write_comparison_page
from h2tune.report.comparison_text import averaging_of, missing_of, text_of, verdict

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
    assert local.seed == 3 and local.method == {"name": "local"} and local.training.learning_rate == 0.002
    assert local.training.core_learning_rate == 0.01 and [c.n_train for c in local.clients] == [25, 25]
    assert local.clients[0].train.endswith("seed=3")
    assert experiment_of(file, Cell("h2tune", 0)).method == {"name": "h2tune", "alternation": "joint"}
    assert experiment_of(file, Cell("h2tune-unshared", 0)).method == {"name": "h2tune-unshared", "share": False}
    assert load_config(file, seed=7).clients[1].test.endswith("seed=7")
    assert load_config(file).clients[1].test.endswith("seed=0")


def test_a_trial_of_a_rate_reads_next_to_no_test_data(file: Path) -> None:
    trial = experiment_of(file, Cell("local", TUNING_SEED, tuning=True))
    assert [c.n_test for c in trial.clients] == [UNREAD_TEST] * 2
    assert [c.n_test for c in experiment_of(file, Cell("local", 0)).clients] == [None, None]


def test_frames_without_sharing_have_the_settings_of_the_files_own_method(file: Path) -> None:
    file.write_text(FILE.replace("rank: 4", "rank: 4\nmethod: {name: h2tune, frames: weights}"))
    assert experiment_of(file, Cell("h2tune-unshared", 0)).method == {
        "name": "h2tune-unshared", "frames": "weights", "share": False}  # fmt: skip
    assert experiment_of(file, Cell("colora", 0)).method == {"name": "colora"}


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
    assert "only fit between equal base models" in both["skipped"]["fedit"] and not both["failed"]
    assert table["methods"][0]["mean"] == first["tables"][0]["methods"][0]["mean"]
    assert json.loads((out / "compare.json").read_text()) == both
    rows = list(csv.DictReader((out / "compare.csv").open()))
    assert [r["method"] for r in rows] == ["local", "h2tune"]
    page = write_comparison_page(both, out).read_text()
    assert "h2tune" in page and "only fit between equal" in page and "<script" not in page
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
    assert (tmp_path / "out/compare.html").is_file()


def test_mistakes_show_before_anything_runs(file: Path, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="Did you mean `fedit`"):
        compare(file, ["local", "fedti"], 1, tmp_path / "out")
    with pytest.raises(ConfigError):
        compare(tmp_path / "missing.yaml", ["local"], 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, ["compare", str(file), "--n-train", "60,many"])
    assert result.exit_code == 1 and "numbers with commas" in result.output


def metrics(per_client: dict[str, tuple[float, float] | None], up: int = 100) -> dict[str, Any]:
    record = {"round": 1, "bytes_up": up, "bytes_down": up, "validation": {"metric": 0.5, "nats": 1.0}}
    clients = {
        name: {
            "final": None if score is None else {"metric": score[0], "nats": score[1], "validation_nats": score[1]},
            "rounds": [record],
            "setup_bytes": {"up": 1, "down": 2},
        }
        for name, score in per_client.items()
    }
    return {"clients": clients, "seconds": 1.0, "mean": {"final": 0.0}}


def test_figures_are_paired_by_seed(file: Path) -> None:
    rng = np.random.default_rng(0)
    level = rng.uniform(0.4, 0.6, size=5)
    gain = rng.normal(0.05, 0.01, size=5)
    outcomes = []
    for seed in range(5):
        outcomes.append(Outcome(Cell("local", seed), metrics({"a": (level[seed], 1), "b": (level[seed], 1)})))
        good = level[seed] + gain[seed]
        outcomes.append(Outcome(Cell("h2tune", seed), metrics({"a": (good, 1), "b": (good, 1)}, up=7)))
    table = summarise(load_config(file), outcomes, {})["tables"][0]
    row = table["methods"][1]
    want = stats.t.interval(0.95, 4, loc=gain.mean(), scale=stats.sem(gain))
    np.testing.assert_allclose(row["over_local"], [gain.mean(), *want])
    np.testing.assert_allclose(row["mean"][0], (level + gain).mean())
    assert row["best_other"] == "local" and row["bytes_up"] == 7 and table["quantity"] == "metric"
    assert row["over_local"][1] > 0 > row["mean"][1] - row["mean"][0]


def test_what_averaging_is_worth_is_said(file: Path) -> None:
    def table(gains: list[float]) -> dict[str, Any]:
        outcomes = []
        for seed, gain in enumerate(gains):
            outcomes.append(Outcome(Cell("h2tune-unshared", seed), metrics({"a": (0.5, 1), "b": (0.5, 1)})))
            outcomes.append(Outcome(Cell("h2tune", seed), metrics({"a": (0.5 + gain, 1), "b": (0.5, 1)})))
        return summarise(load_config(file), outcomes, {})["tables"][0]

    assert averaging_of(table([0.1, 0.12])).endswith(
        "not averaged): +5.5 (-0.9 to +11.9) points, which may be chance."
    )
    assert averaging_of(table([0.1, 0.1, 0.11])).endswith("+5.2 (+4.4 to +5.9) points.")
    assert averaging_of(table([0.1])).endswith("+5.0 points.")
    alone = summarise(load_config(file), [Outcome(Cell("h2tune", 0), metrics({"a": (0.5, 1), "b": (0.5, 1)}))], {})
    assert averaging_of(alone["tables"][0]) == ""


def test_losing_the_weakest_client_is_no_gain(file: Path) -> None:
    """With h2tune client b drops out for seed 1: b counts with neither method there, and the table says so."""
    strong, weak = (0.8, 1.0), (0.2, 1.0)
    outcomes = [Outcome(Cell(m, s), metrics({"a": strong, "b": weak})) for m in ("local", "h2tune") for s in (0, 1)]
    outcomes[3] = Outcome(Cell("h2tune", 1), metrics({"a": strong, "b": None}))
    result = summarise(load_config(file), outcomes, {})
    table = result["tables"][0]
    local, h2tune = table["methods"]
    assert local["seeds"] == h2tune["seeds"] == {"0": 0.5, "1": 0.8}
    assert h2tune["over_local"] == [0, 0, 0] and table["missing"] == {"1": ["b"]}
    assert missing_of(table) == ("Means leave out clients that have no result with at least one method (seed 1: b).")
    assert "seed 1: b" in render(result)


def test_a_run_without_any_result_is_a_failed_one(file: Path) -> None:
    outcomes = [
        Outcome(Cell("local", 0), metrics({"a": (0.8, 1.0)})),
        Outcome(Cell("h2tune", 0), metrics({"a": None})),
    ]
    result = summarise(load_config(file), outcomes, {})
    assert [row["method"] for row in result["tables"][0]["methods"]] == ["local"]
    assert result["failed"] == {"runs/h2tune/seed-0": "no client has a result"}
    nothing = summarise(load_config(file), outcomes[1:], {})
    assert nothing["tables"][0]["methods"] == [] and verdict(nothing) == "No run finished."


def test_intervals_stay_where_values_can_be() -> None:
    """Two seeds give wide intervals: no share below 0 or above 1, no negative loss."""
    assert interval([0.1, 0.3], 0, 1)[1:] == [0, 1]
    mean, low, high = interval([0.1, 0.3])
    assert low < 0 < 1 < high and mean == 0.2


def test_the_terminal_says_who_is_best_and_what_the_figures_are(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [
        Outcome(Cell("local", 0), metrics({"a": (0.01, 2.0), "b": (0.6, 2.0)})),
        Outcome(Cell("h2tune", 0), metrics({"a": (0.0, 1.5), "b": (0.5, 1.5)}, up=2000)),
    ]
    print_comparison(summarise(load_config(file), outcomes, {}))
    text = capsys.readouterr().out
    assert text.startswith("tiny: h2tune is best, +0.500 nats over local; one seed says little.")
    for words in ("less is better", "natural logarithms", "positive where the method is better", "once, up", "2.0 kB"):
        assert words in " ".join(text.split())
    tables = text.split("Nats per answer token on test")[0]
    assert max(len(line) for line in tables.splitlines()) <= 80


def test_a_finished_run_is_told_in_both_quantities() -> None:
    told = grid._line(Outcome(Cell("h2tune", 0), metrics({"a": (0.25, 2.0), "b": (0.75, 1.0)})))
    assert told == "h2tune/seed-0  50.0 % right, 1.500 nats  1 s"


def test_nats_stand_in_where_hardly_anything_is_right(file: Path) -> None:
    outcomes = [
        Outcome(Cell("local", 0), metrics({"a": (0.01, 2.0), "b": (0.6, 2.0)})),
        Outcome(Cell("h2tune", 0), metrics({"a": (0.0, 1.5), "b": (0.5, 1.5)})),
    ]
    table = summarise(load_config(file), outcomes, {})["tables"][0]
    assert table["quantity"] == "nats" and table["methods"][1]["over_local"][0] == 0.5  # less is better, so positive
    assert table["methods"][1]["best_other"] == "local"


def test_rates_are_chosen_by_validation_never_by_test() -> None:
    def trial(rate: float, right: float, nats: float, test: float, other: float = 0.5) -> Outcome:
        found = metrics({"a": (test, 1.0), "b": (0.5, 1.0)})
        found["clients"]["a"]["final"] |= {"validation": right, "validation_nats": nats}
        found["clients"]["b"]["final"] |= {"validation": other, "validation_nats": 1.0}
        return Outcome(Cell("local", TUNING_SEED, None, rate, True), found)

    # What the table shows counts, though nats would say x0.3; between equals nats decide.
    assert best_rates([trial(0.3, 0.4, 0.8, 0.9), trial(1, 0.6, 0.9, 0.1), trial(3, 0.6, 1.1, 0.9)]) == {"local": 1}
    # A client that gets next to nothing right at any rate: nats for all.
    trials = [trial(0.3, 0.4, 0.8, 0.9, other=0.0), trial(1, 0.6, 0.9, 0.1, other=0.04)]
    assert best_rates(trials) == {"local": 0.3}


def test_texts_of_intervals() -> None:
    assert interval([0.5]) == [0.5, 0.5, 0.5]
    assert text_of([0.5, 0.4, 0.6], "metric") == "50.0 (40.0 to 60.0)"
    assert text_of([-0.0001, -0.0001, -0.0001], "metric", signed=True) == "+0.0"
    assert text_of([0.5, 0.25, 0.75], "nats", signed=True) == "+0.500 (+0.250 to +0.750)"
    assert text_of(None, "nats") == "-"


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


def test_a_long_run_says_how_far_it_is(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    told = queue.Queue()
    monkeypatch.setattr(grid, "TELL_EVERY", 0.0)
    monkeypatch.setattr(grid, "_TOLD", [told])
    with grid._passing_on(told, said.append):
        outcome = grid._run(str(file), Cell("h2tune", 0), tmp_path / "out")
    assert outcome.metrics is not None and len(said) == 4  # two clients, two updates each
    assert said[0] == "    h2tune/seed-0: a, round 1, joint 1 of 2"
