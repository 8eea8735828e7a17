"""The same work in h2tune's, Flower's and NVFlare's simulations: whole commands and their rounds, one after the other.

    python benchmarks/speed/work.py WORK --clients 32 --rounds 3      # or: --clients 8 --model MODELS/smollm2-135m --steps 2
    OMP_NUM_THREADS=1 python benchmarks/speed/simulations.py WORK --flower VENV/bin/python

Every contestant is a command of its own. Each call goes once
through all contestants and adds to the result: several calls are several interleaved runs. `VENV` holds Flower and Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from h2tune.zoo import zoo_folder

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS, about, amend, interval_name, median_interval

HERE = Path(__file__).parent
PACKAGES = ("h2tune", "flwr", "nvflare", "ray", "torch", "transformers", "peft", "numpy")


class Processor:
    """Processor seconds of a command and all its descendants over time, also of those that outlive their parents.

    A machine is seldom quiet; what other programs take of it is not counted here.
    """

    def __init__(self, root: int) -> None:
        self.known, self.used = {root}, {root: 0.0}
        self.times: list[float] = []
        self.totals: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        while not self._ended.wait(0.2):
            lines = [text for path in Path("/proc").glob("[0-9]*/stat") if (text := _text(path))]
            fields = [(int(text.split(" ", 1)[0]), text.rpartition(")")[2].split()) for text in lines]
            for pid, rest in sorted(fields):  # parents first, as long as numbers grow
                if pid in self.known or int(rest[1]) in self.known:
                    self.known.add(pid)
                    self.used[pid] = (int(rest[11]) + int(rest[12])) / tick
            self.times.append(time.time())
            self.totals.append(sum(self.used.values()))

    def end(self) -> float:
        """Stop watching; returns all that was used."""
        self._ended.set()
        self._thread.join()
        return self.totals[-1]

    def between(self, begin: float, end: float) -> float:
        """Seconds used between two times."""
        first, last = np.interp([begin, end], self.times, self.totals)
        return float(last - first)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""


def ours(work: Path, parallel: int | str, *options: str) -> dict[str, Any]:
    """A run of h2tune: the ends of its rounds and their losses from what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        plain = yaml.safe_load((work / "federation.yaml").read_text()) | {"parallel": parallel}
        config, out = Path(folder) / "federation.yaml", Path(folder) / "run"
        config.write_text(yaml.safe_dump(plain, sort_keys=False))
        found = run([sys.executable, "-m", "h2tune", "run", str(config), "--out", str(out), *options])
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        metrics = json.loads((out / "metrics.json").read_text())
    rounds = [[r["loss"]["local"] for r in c["rounds"]] for c in metrics["clients"].values()]
    at = [(e["event"], datetime.fromisoformat(e["time"]).timestamp()) for e in events]
    begin = next(when for event, when in at if event == "round_started")
    ends = [begin, *(when for event, when in at if event == "round_committed")]
    return figures(found, ends, [sum(values) / len(values) for values in zip(*rounds, strict=True)])


def theirs(*command: str) -> dict[str, Any]:
    """A peer's app; it prints its figures as the last line."""
    found = run(list(command))
    said = json.loads(found[0].strip().splitlines()[-1])
    return figures(found, said["ends"], said["losses"])


def figures(found: tuple[str, float, Processor], ends: list[float], losses: list[float]) -> dict[str, Any]:
    _, seconds, processor = found
    return {
        "losses": losses,
        "seconds": seconds,
        "processor_seconds": processor.end(),
        "round_seconds": [b - a for a, b in pairwise(ends)],
        "round_processor_seconds": [processor.between(a, b) for a, b in pairwise(ends)],
    }


def run(command: list[str]) -> tuple[str, float, Processor]:
    """What a command prints, its seconds, and the processor that it used."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile("w+") as said:
        started = subprocess.Popen(command, cwd=HERE, stdout=said, stderr=errors, text=True)
        processor = Processor(started.pid)
        if started.wait():
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read()[-2000:]}")
        seconds = time.perf_counter() - begin
        said.seek(0)
        return said.read(), seconds, processor


def base_of(work: Path) -> str:
    """Folder of the base that the clients of a work have."""
    model = yaml.safe_load((work / "federation.yaml").read_text())["clients"][0]["model"]
    return str(zoo_folder(model.removeprefix("zoo:"))) if model.startswith("zoo:") else str(model)


def versions(python: str) -> dict[str, str]:
    """Versions of the packages that an interpreter has."""
    ask = (
        "import json, importlib.metadata as m\nfound = {}\n"
        f"for name in {PACKAGES!r}:\n    try: found[name] = m.version(name)\n    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    found: dict[str, str] = json.loads(
        subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout
    )
    return found


def summary(runs: dict[str, list[dict[str, Any]]], shape: tuple[int, ...]) -> dict[str, Any]:
    """Medians with intervals: whole commands, and the rounds after the first, in which models are loaded."""
    clients, _, steps = shape[:3]

    def rates(some: list[dict[str, Any]], key: str) -> list[float]:
        return [clients * steps * (len(r[key]) - 1) / sum(r[key][1:]) for r in some]

    def ratio(name: str) -> Any:  # runs of one call stand beside each other
        pairs = zip(ours, rates(runs[name], "round_processor_seconds"), strict=False)
        ratios = [a / b for a, b in pairs]
        return median_interval(ratios) if ratios else None

    ours = rates(runs.get("h2tune, 2 workers", []), "round_processor_seconds")
    return {
        name: {
            "runs": len(some),
            "intervals": interval_name(len(some)),
            "losses": some[-1]["losses"],
            "command_seconds": median_interval([r["seconds"] for r in some]),
            "command_processor_seconds": median_interval([r["processor_seconds"] for r in some]),
            "outside_rounds_processor_seconds": median_interval(
                [r["processor_seconds"] - sum(r["round_processor_seconds"]) for r in some]
            ),
            "updates_per_second": median_interval(rates(some, "round_seconds")),
            "updates_per_processor_second": median_interval(rates(some, "round_processor_seconds")),
            "h2tune_with_2_workers_to_this": ratio(name),
        }
        for name, some in runs.items()
    }


def add(path: Path, name: str, found: dict[str, Any], said: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Put a run into the result, which other calls may be filling, too."""

    def added(known: dict[str, Any]) -> dict[str, Any]:
        runs = known.get("all_runs", {})
        runs = runs | {name: [*runs.get(name, []), found]}
        return about() | said | {"summary": summary(runs, shape), "all_runs": runs}

    amend(path, added)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--flower", default=sys.executable, help="Python that has Flower and Ray")
    parser.add_argument("--nvflare", default=sys.executable, help="Python that has NVFlare")
    parser.add_argument("--only", nargs="+", help="some of the contestants")
    parser.add_argument("--name", default="simulations", help="name of the result")
    args = parser.parse_args()
    work = args.work.resolve()
    source = base_of(work)
    os.environ |= {"SPEED_WORK": str(work), "SPEED_BASE": source, "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Flower's workers do not give way to other programs either
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE)])
    contestants = {
        "h2tune, 2 workers": lambda: ours(work, 1, "--workers", "2"),
        "h2tune, 2 workers, parallel auto": lambda: ours(work, "auto", "--workers", "2"),
        "h2tune, 1 process": lambda: ours(work, 1),
        "Flower": lambda: theirs(args.flower, "flower.py"),
        "NVFlare": lambda: theirs(args.nvflare, "nvflare_job.py", str(work), source),
        "bare loop, 1 process": lambda: theirs(sys.executable, "bare.py", str(work), source),
    }
    shape = np.load(work / "batches.npz")["ids"].shape
    path = RESULTS / "speed" / f"{args.name}.json"
    for name in args.only or contestants:  # ours with workers first: the others are compared with it
        load = os.getloadavg()[0]
        found = contestants[name]() | {"load_before": load}
        print(name, json.dumps(found), flush=True)
        said = {
            "clients": shape[0], "rounds": shape[1], "updates_per_round": shape[2], "rows": shape[3], "tokens": shape[4],
            "model": Path(source).name,
            "clock": "the one on the wall, and processor seconds of all processes of a command",
            "versions": {
                "h2tune and the bare loop": versions(sys.executable),
                "Flower": versions(args.flower), "NVFlare": versions(args.nvflare),
            },
        }  # fmt: skip
        add(path, name, found, said, shape)


if __name__ == "__main__":
    main()
