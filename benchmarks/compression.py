"""Smaller messages: accuracy against bytes, on the demo federation.

Every setting is the demo with another `wire` section; baselines beside the run are left out. Frames are practised once
and kept under --out. Finished runs are not repeated: the JSON goes on where it stopped.

Run as: python benchmarks/compression.py --out runs/compression
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import about, amend, read

from h2tune.utils.logging import quiet_libraries

WIRES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
    "top-k 0.1": {"top_k": 0.1},
    "top-k 0.01": {"top_k": 0.01},
    "int8, top-k 0.1": {"dtype": "int8", "top_k": 0.1},
}
RESULTS = Path(__file__).parent / "results" / "compression.json"


def measure(wire: dict[str, Any], seed: int, models: Any) -> dict[str, Any]:
    from h2tune.demo import demo_experiment
    from h2tune.federation import run

    models.release()
    with tempfile.TemporaryDirectory() as folder:
        experiment = demo_experiment(seed, baseline="none", wire=wire, evaluation={"every": 20, "n_validation": 60})
        metrics = run(experiment, Path(folder) / "run", models=models)
    rounds = [client["rounds"] for client in metrics["clients"].values()]
    up = sum(r["bytes_up"] for client in rounds for r in client) / sum(map(len, rounds))
    return {"accuracy": metrics["mean"]["final"], "bytes_up": up, "seconds": metrics["seconds"],
            "clients": {n: c["final"]["metric"] for n, c in metrics["clients"].items()}}  # fmt: skip


def add(key: str, found: dict[str, Any]) -> dict[str, Any]:
    """Put a run into the table, which other programs may be filling, too; returns all that are in it."""
    return dict(amend(RESULTS, lambda known: about() | {"runs": known.get("runs", {}) | {key: found}})["runs"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/compression"), help="where practised frames are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    quiet_libraries()
    from h2tune.participant.base_models import ModelPool

    torch.set_num_threads(1)
    models = ModelPool("cpu", args.out / "frames")
    runs = read(RESULTS).get("runs", {})
    for seed in args.seeds:
        for name, wire in WIRES.items():
            key = f"{name}/{seed}"
            if key not in runs:
                runs = add(key, measure(wire, seed, models))
            found, full = runs[key], runs[f"float32/{seed}"]
            print(f"seed {seed}  {name:<16} {found['bytes_up'] / 1000:8.1f} KB a round"
                  f" ({full['bytes_up'] / found['bytes_up']:5.1f} x less)  accuracy {found['accuracy']:.3f}"
                  f" ({100 * (found['accuracy'] - full['accuracy']):+.1f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
