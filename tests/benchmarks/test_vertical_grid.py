"""The grid of vertical methods: what a headline is the mean of can be computed from what is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER / "vertical"))
    import grid

    yield grid
    for name in ("grid", "problems", "common"):
        sys.modules.pop(name, None)


def test_the_mean_of_tables_has_its_interval_over_seeds(grid: Any, tmp_path: Path) -> None:
    shares = {"proto-evfl": 0.8, "splitnn": 0.7, "fedcvt": 0.6}
    for number, table in enumerate(grid.TABLES):
        for seed in grid.SEEDS:
            for method, share in shares.items():
                behind = 0.01 * number if method == "splitnn" else 0.001 * (seed - 12) if method == "fedcvt" else 0.0
                figures = dict.fromkeys(("balanced", "accuracy"), share - behind)
                grid.cell(tmp_path, f"main/{table}/{method}-{seed}", lambda f=figures: f | {"tuned": {}})
    tables = grid.collect(tmp_path)["main"]
    assert tables["letter"]["best_rival"] == "splitnn" and tables["letter"]["over_best"][0] == pytest.approx(13)
    assert tables["letter"]["methods"]["splitnn"]["by_seed"]["balanced"] == pytest.approx([67] * 5)
    means = grid.means(tables)
    assert means["best rival"] == pytest.approx([11.5] * 3) and means["splitnn"] == means["best rival"]
    half = 2.7764451 * 0.1 * (2.5**0.5) / 5**0.5
    assert means["fedcvt"] == pytest.approx([20, 20 - half, 20 + half])


def test_a_cell_of_other_settings_is_refused(grid: Any, tmp_path: Path) -> None:
    made = grid.cell(tmp_path, "main/a/b-10", lambda: {"balanced": 0.5}, {"table": "a", "aligned": 100})
    assert {"command", "commit", "date", "machine"} <= made.keys()
    with pytest.raises(SystemExit, match="aligned: 100 there, 200 here"):
        grid.cell(tmp_path, "main/a/b-10", lambda: {"balanced": 0.6}, {"table": "a", "aligned": 200})
    (tmp_path / "old.json").write_text(json.dumps({"result": {"balanced": 0.4}, "seconds": 1.0}))
    assert grid.cell(tmp_path, "old", dict, {"table": "a"})["result"]["balanced"] == 0.4
