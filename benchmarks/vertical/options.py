"""What the method's options are worth: each one in place of its default, on tuning problems. Goes on where it stopped.

python benchmarks/vertical/options.py --out CELLS

One tuning problem of each table, with 100 aligned rows and tails of ratio 20. No test row of any other benchmark is in them.
Differences are paired by problem; the interval is over problems, and wide with four of them.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from grid import AVERAGE, MAIN, TUNING_SEEDS, built, cell, scored, write

from h2tune.vertical.compare import interval

OPTIONS: dict[str, dict[str, Any]] = {
    "gate: learned": {"method.gate": "learned"},
    "select: soft": {"method.select": "soft"},
    "top: mlp": {"method.top": "mlp"},
    "ct: 0.5": {"method.ct": 0.5},
    "ct: 0.5, hypergradient: exact": {"method.ct": 0.5, "method.hypergradient": "exact"},
    "prior: global": {"method.prior": "global"},
    "prior: local": {"method.prior": "local"},
    "stale: 2, half the steps": {"training.stale": 2, "training.steps": 5},
    "average: 0.9": AVERAGE,
}


def found(folder: Path, name: str, changes: dict[str, Any]) -> dict[str, list[float]]:
    """Balanced accuracy by table."""
    place = "".join(c if c.isalnum() else "_" for c in name)

    def run(table: str, seed: int) -> float:
        problem = lambda: built(MAIN[table], seed, tuning=True)  # noqa: E731
        result = cell(
            folder, f"options/{table}/{place}-{seed}", lambda: scored("proto-evfl", problem(), seed, changes)
        )
        return 100 * float(result["result"]["balanced"])

    return {table: [run(table, seed) for seed in TUNING_SEEDS] for table in MAIN}


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    folder: Path = parser.parse_args().out
    torch.set_num_threads(1)
    default = found(folder, "default", {})
    rows = {}
    for name, changes in OPTIONS.items():
        values = found(folder, name, changes)
        over = {t: [a - b for a, b in zip(values[t], default[t], strict=True)] for t in values}
        rows[name] = {
            "over_default": interval([v for run in over.values() for v in run]),
            "tables": {table: statistics.fmean(run) for table, run in over.items()},
        }
        print(
            name,
            {t: round(v, 1) for t, v in rows[name]["tables"].items()},
            [round(v, 1) for v in rows[name]["over_default"]],
        )
    write("vertical-options", {"default": default, "options": rows})


if __name__ == "__main__":
    main()
