"""The examples on real data: do classification clients beat the majority class, and do mathematics clients beat the
untuned and the unigram model in nats per answer token?

Run as: python benchmarks/real.py --out runs/real      # finished runs in the folder are read, not repeated
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import write

from h2tune.utils.logging import quiet_libraries

EXAMPLES = Path(__file__).parents[1] / "examples"


def metrics_of(name: str, out: Path) -> dict[str, Any]:
    from h2tune.config import load_config
    from h2tune.federation import run
    from h2tune.report import write_report

    finished = out / name / "metrics.json"
    if finished.is_file():
        return json.loads(finished.read_text())
    experiment = load_config(EXAMPLES / f"{name}.yaml")
    metrics = run(experiment.model_copy(update={"baseline": "none"}), out / name, resume=True)
    write_report(out / name)
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    args = parser.parse_args()
    quiet_libraries()
    rows = []
    for name in ("glue", "math"):
        for client, c in metrics_of(name, args.out)["clients"].items():
            row = {"example": name, "client": client, "task": c["task"], "model": c["model"], "majority": c["majority"],
                   "base": c["base"], "final": c["final"], "unigram_nats": c["unigram_nats"]}  # fmt: skip
            if name == "glue":
                row["met"] = c["final"]["metric"] > c["majority"]
                text = f"{c['final']['metric']:.3f} against {c['majority']:.3f} (majority)"
            else:
                row["met"] = c["final"]["nats"] < min(c["base"]["nats"], c["unigram_nats"])
                text = f"{c['final']['nats']:.2f} nats against {c['base']['nats']:.2f} (untuned), {c['unigram_nats']:.2f} (unigram)"
            rows.append(row)
            print(f"{name:<6}{client:<14}{c['model']:<12}{text}  {'met' if row['met'] else 'MISSED'}", flush=True)
    write("real", {"clients": rows, "met": all(row["met"] for row in rows)})


if __name__ == "__main__":
    main()
