"""The demo over seeds: H2Tune against local LoRA, and against the same frames without averaging; paired intervals.

Run as: python benchmarks/demo.py --seeds 5
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from common import write

from h2tune.comparison.statistics import interval
from h2tune.utils.logging import quiet_libraries


def one(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return measure(seed, Path(folder) / "run")


def measure(seed: int, folder: Path) -> dict[str, Any]:
    quiet_libraries()
    from h2tune.demo import demo_experiment
    from h2tune.federation import run

    begin = time.perf_counter()
    metrics = run(demo_experiment(seed), folder)
    clients = {
        name: {k: c[k]["metric"] for k in ("base", "local", "unshared", "final")}
        for name, c in metrics["clients"].items()
    }
    seconds = time.perf_counter() - begin
    # In one process nobody waits: what a round takes beyond its clients' own seconds is coordination.
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    whole = sum(e["seconds"] for e in events if e["event"] == "round_committed")
    own = sum(e["seconds"] for e in events if e["event"] == "client_finished")
    return {
        "seed": seed,
        "mean": metrics["mean"],
        "clients": clients,
        "seconds": seconds,
        "coordination": 1 - own / whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--jobs", type=int, default=1, help="demos at a time; more than one makes the times meaningless"
    )
    args = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for row in pool.map(one, range(args.seeds)):
            rows.append(row)
            mean = row["mean"]
            print(f"seed {row['seed']}: base {mean['base']:.3f}  alone {mean['local']:.3f}  not averaged"
                  f" {mean['unshared']:.3f}  federated {mean['final']:.3f}  ({row['seconds']:.0f} s)", flush=True)  # fmt: skip
    result: dict[str, Any] = {"seeds": rows}
    for other in ("local", "unshared"):
        result[f"over_{other}"] = interval([row["mean"]["final"] - row["mean"][other] for row in rows])
        print("federated - {}: {:+.3f} (95 % interval {:+.3f} to {:+.3f})".format(other, *result[f"over_{other}"]))
    shares = [row["coordination"] for row in rows]
    print(
        f"coordination: {100 * max(shares):.1f} % of a round at most; slowest demo {max(r['seconds'] for r in rows):.0f} s"
    )
    write("demo", result)


if __name__ == "__main__":
    main()
