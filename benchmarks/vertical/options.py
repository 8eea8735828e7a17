"""What the method's options are worth: each one in place of its default, on tuning problems. Goes on where it stopped.

python benchmarks/vertical/options.py --out CELLS

Two tuning problems of each table, with 100 aligned rows and tails of ratio 20, and with tails of ratio 100. No test row of
any other benchmark is in them. Differences are paired by problem; the interval is over problems.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from grid import AVERAGE, MAIN, SKEWED, about, built, cell, scored

from h2tune.vertical.compare import interval
from h2tune.vertical.methods.proto_evfl import MANY

SEEDS = (100, 101)
BASE = MANY | AVERAGE
OPTIONS: dict[str, dict[str, Any]] = {
    "gate: coverage": {"method.gate": "coverage"},
    "gate: learned": {"method.gate": "learned"},
    "select: soft": {"method.select": "soft"},
    "select: all": {"method.select": "all"},
    "top: mlp": {"method.top": "mlp"},
    "ct: 0.5": {"method.ct": 0.5},
    "ct: 0.5, hypergradient: exact": {"method.ct": 0.5, "method.hypergradient": "exact"},
    "stale: 2, half the steps": {"training.stale": 2, "training.steps": 5},
    "warmup: 30": {"method.warmup": 30},
    "dropout: 0.3": {"training.dropout": 0.3},
    "last weights": {"training.average": 0.0},
}


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    folder: Path = parser.parse_args().out
    torch.set_num_threads(1)
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for group, settings in (("main", MAIN), ("skewed", SKEWED)):
        for table, setting in settings.items():
            for seed in SEEDS:
                for name, changes in {"default": {}, **OPTIONS}.items():
                    place = "".join(c if c.isalnum() else "_" for c in name)

                    def work(setting: Any = setting, seed: int = seed, changes: Any = changes) -> dict[str, Any]:
                        return scored("proto-evfl", built(setting, seed, tuning=True), seed, BASE | changes)

                    found = cell(folder, f"options/{group}/{table}/{place}-{seed}", work)["result"]
                    values.setdefault(group, {}).setdefault(name, {}).setdefault(table, []).append(
                        100 * found["balanced"]
                    )
    result = {
        group: {name: _over(found, rows["default"]) for name, found in rows.items()} for group, rows in values.items()
    }
    path = Path(__file__).parents[1] / "results" / "vertical-options.json"
    path.write_text(
        json.dumps(about("python benchmarks/vertical/options.py --out CELLS") | {"groups": result}, indent=1) + "\n"
    )
    for group, rows in result.items():
        for name, row in rows.items():
            print(f"{group:<8} {name:<32} {row['balanced']:.1f}  {[round(v, 1) for v in row['over default']]}")


def _over(found: dict[str, list[float]], default: dict[str, list[float]]) -> dict[str, Any]:
    pairs = [(a, b) for table, run in found.items() for a, b in zip(run, default[table], strict=True)]
    return {
        "balanced": sum(a for a, _ in pairs) / len(pairs),
        "over default": interval([a - b for a, b in pairs]),
        "tables": {t: sum(a - b for a, b in zip(run, default[t], strict=True)) / len(run) for t, run in found.items()},
    }


if __name__ == "__main__":
    main()
