"""The same work in h2tune's, Flower's and NVFlare's simulations: whole commands and their rounds, one after the other.

    python benchmarks/speed/work.py WORK --clients 32 --rounds 3
    OMP_NUM_THREADS=1 python benchmarks/speed/simulations.py WORK --flower VENV/bin/python

Every contestant is a command of its own. The clock is the one on the wall, so the machine has to be quiet. Each call goes once
through all contestants and adds to the result: several calls are several interleaved runs. `VENV` holds Flower, Ray and what
h2tune needs; Ray's workers of h2tune run there, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from h2tune.zoo import zoo_folder

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS, median_interval, write

HERE = Path(__file__).parent
PACKAGES = ("h2tune", "flwr", "nvflare", "ray", "torch", "transformers", "peft", "numpy")


def ours(work: Path, parallel: int | str, python: str, *options: str) -> dict[str, Any]:
    """A run of h2tune: seconds of its rounds and their losses from what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        plain = yaml.safe_load((work / "federation.yaml").read_text()) | {"parallel": parallel}
        config, out = Path(folder) / "federation.yaml", Path(folder) / "run"
        config.write_text(yaml.safe_dump(plain, sort_keys=False))
        run([python, "-m", "h2tune", "run", str(config), "--out", str(out), *options])
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        metrics = json.loads((out / "metrics.json").read_text())
    rounds = [[r["loss"]["local"] for r in c["rounds"]] for c in metrics["clients"].values()]
    return {
        "round_seconds": [e["seconds"] for e in events if e["event"] == "round_committed"],
        "losses": [sum(values) / len(values) for values in zip(*rounds, strict=True)],
    }


def theirs(*command: str) -> dict[str, Any]:
    """A peer's app; it prints its figures as the last line."""
    found: dict[str, Any] = json.loads(run(list(command)).strip().splitlines()[-1])
    return found


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def versions(python: str) -> dict[str, str]:
    """Versions of the packages that an interpreter has."""
    ask = (
        "import json, importlib.metadata as m\nfound = {}\n"
        f"for name in {PACKAGES!r}:\n    try: found[name] = m.version(name)\n    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    found: dict[str, str] = json.loads(run([python, "-c", ask]))
    return found


def summary(runs: dict[str, list[dict[str, Any]]], shape: tuple[int, ...]) -> dict[str, Any]:
    """Medians with intervals: whole commands, and updates per second in the rounds after the first, where models are loaded."""
    clients, _, steps = shape[:3]
    rates = {
        name: [clients * steps * (len(r["round_seconds"]) - 1) / sum(r["round_seconds"][1:]) for r in some]
        for name, some in runs.items()
    }
    found = {}
    for name, some in runs.items():
        outside = [r["seconds"] - sum(r["round_seconds"]) for r in some]
        found[name] = {
            "runs": len(some),
            "losses": some[-1]["losses"],
            "command_seconds": median_interval([r["seconds"] for r in some]),
            "outside_rounds_seconds": median_interval(outside),
            "updates_per_second": median_interval(rates[name]),
            "rounds_of_ours_to_this": median_interval(
                [a / b for a, b in zip(rates["h2tune, 2 workers"], rates[name], strict=False)]
            ),  # runs of one call stand beside each other
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--flower", default=sys.executable, help="Python that has Flower, Ray and h2tune's needs")
    parser.add_argument("--nvflare", default=sys.executable, help="Python that has NVFlare")
    parser.add_argument("--only", nargs="+", help="some of the contestants")
    parser.add_argument("--name", default="simulations", help="name of the result")
    args = parser.parse_args()
    work, source = args.work.resolve(), str(zoo_folder("llama"))
    os.environ |= {"SPEED_WORK": str(work), "SPEED_BASE": source, "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE)])
    contestants = {
        "h2tune, 2 workers": lambda: ours(work, 1, args.flower, "--workers", "2"),
        "h2tune, 2 workers, parallel auto": lambda: ours(work, "auto", args.flower, "--workers", "2"),
        "h2tune, 1 process": lambda: ours(work, 1, sys.executable),
        "Flower": lambda: theirs(args.flower, "flower.py"),
        "NVFlare": lambda: theirs(args.nvflare, "nvflare_job.py", str(work), source),
        "bare loop, 1 process": lambda: theirs(sys.executable, "bare.py", str(work)),
    }
    shape = np.load(work / "batches.npz")["ids"].shape
    path = RESULTS / "speed" / f"{args.name}.json"
    runs = json.loads(path.read_text())["all_runs"] if path.is_file() else {}
    for name in args.only or contestants:  # ours with workers first: the others are compared with it
        begin, load = time.perf_counter(), os.getloadavg()[0]
        found = contestants[name]() | {"seconds": time.perf_counter() - begin, "load_before": load}
        runs.setdefault(name, []).append(found)
        print(name, json.dumps(found), flush=True)
        about = {
            "clients": shape[0], "rounds": shape[1], "updates_per_round": shape[2], "rows": shape[3], "tokens": shape[4],
            "clock": "wall seconds",
            "versions": {
                "Flower, and h2tune with workers": versions(args.flower), "NVFlare": versions(args.nvflare),
                "one process": versions(sys.executable),
            },
        }  # fmt: skip
        write(f"speed/{args.name}", about | {"summary": summary(runs, shape), "all_runs": runs})


if __name__ == "__main__":
    main()
