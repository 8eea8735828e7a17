"""A list of rates can be made longer: finished trials stay, and only what depends on the choice is run anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from h2tune.comparison import compare as module
from h2tune.comparison.cells import TUNING_SEED, Cell, Outcome
from h2tune.comparison.compare import compare

FILE = """
name: tiny
rounds: 1
rank: 4
training: {steps: 1, batch_size: 2}
clients:
  - {name: a, model: "zoo:llama", task: demo-fill, train: "demo:fill?split=train&n=24", test: "demo:fill?split=test&n=4"}
"""


def test_a_rate_beyond_the_best_one_goes_on_with_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "tiny.yaml", tmp_path / "out"
    file.write_text(FILE)
    best = {"local": 3.0}
    monkeypatch.setattr(module, "best_rates", lambda outcomes: dict(best))

    def told() -> tuple[float, dict[str, float] | None]:
        """The rate that the result says, and what `tuned.json` says."""
        result = json.loads((out / "compare.json").read_text())
        kept = out / "tuned.json"
        return result["tables"][0]["methods"][0]["rate"], json.loads(kept.read_text()) if kept.is_file() else None

    compare(file, ["local"], 1, out, tune=[1, 3], jobs=1)
    assert told() == (3.0, {"local": 3.0})
    made = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")}
    assert {str(path.parent.relative_to(out)) for path in made} == {
        "tune/local/rate-1/seed-10000", "tune/local/rate-3/seed-10000", "runs/local/rate-3/seed-0"}  # fmt: skip

    best["local"] = 10.0
    lines: list[str] = []
    compare(file, ["local"], 1, out, tune=[1, 3, 10], jobs=1, say=lines.append)
    assert lines[0] == "2 of 3 runs are finished already" and told() == (10.0, {"local": 10.0})
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in made.items())
    assert len(list(out.rglob("metrics.json"))) == 5

    compare(file, ["local"], 1, out, jobs=1)  # of the file's own rates: tuned.json would tell of another result
    assert told() == (1.0, None)


def test_a_method_without_any_finished_trial_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs are made with the file's own rates, which nobody chose; one that does not suit is not run at all."""
    file, out = tmp_path / "tiny.yaml", tmp_path / "out"
    file.write_text(FILE)
    final = {"metric": 0.5, "nats": 1.0, "validation": 0.5, "validation_nats": 1.0}
    rounds = [{"round": 1, "bytes_up": 1, "bytes_down": 1}]
    client = {"final": final, "rounds": rounds, "setup_bytes": {"up": 1, "down": 1}}
    metrics = {"seconds": 1.0, "clients": {"a": client}}

    def outcome(cell: Cell) -> Outcome:
        if cell.method == "fedit":
            return Outcome(cell, reason="does not suit", skipped=True)
        if cell.method == "h2tune" and cell.tuning:
            return Outcome(cell, reason="no memory")
        return Outcome(cell, metrics)

    monkeypatch.setattr(module, "run_grid", lambda file, cells, *more: [outcome(cell) for cell in cells])
    lines: list[str] = []
    out.mkdir()
    methods = ["local", "fedit", "h2tune"]
    result = compare(file, methods, 1, out, n_train=[20], tune=[3, 10], jobs=1, say=lines.append)
    assert lines == [
        "warning: --tune: no trial of h2tune-n20 has a result; runs have the file's own rates (x1)",
        "rates chosen by validation: local-n20 x3",
    ]
    assert [row["rate"] for row in result["tables"][0]["methods"]] == [3, 1]


def test_folders_of_cells() -> None:
    assert Cell("local", 2).folder == "runs/local/seed-2"
    assert Cell("local", 2, 60, 0.3).folder == "runs/local-n60/rate-0.3/seed-2"
    assert Cell("local", TUNING_SEED, 60, 1.0, True).folder == "tune/local-n60/rate-1/seed-10000"
