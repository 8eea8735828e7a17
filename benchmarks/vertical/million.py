"""A million rows at each of three parties, generated: time and memory of alignment and training.

python benchmarks/vertical/million.py
"""

from __future__ import annotations

import itertools
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from grid import write

from h2tune.vertical.config import parse_vertical
from h2tune.vertical.federation import run

ROWS, ALIGNED, CLASSES, WIDTH = 1_000_000, 200_000, 5, 6


def write_parties(folder: Path) -> None:
    """Three Parquet files; the first 200,000 people are in all of them."""
    rng = np.random.default_rng(0)
    shared = rng.integers(CLASSES, size=ALIGNED)
    for name in ("bank", "clinic", "shop"):
        labels = np.concatenate([shared, rng.integers(CLASSES, size=ROWS - ALIGNED)])
        x = rng.normal(size=(CLASSES, WIDTH))[labels] + rng.normal(size=(ROWS, WIDTH))
        frame = pd.DataFrame(x.astype(np.float32), columns=[f"x{j}" for j in range(WIDTH)])
        frame.insert(0, "id", [f"p{i}" if i < ALIGNED else f"{name}{i}" for i in range(ROWS)])
        if name == "bank":
            frame["kind"] = [f"class-{c}" for c in labels]
        frame.to_parquet(folder / f"{name}.parquet")


def main() -> None:
    """Run, print, keep."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parties(folder)
        config = parse_vertical({
            "rounds": 5, "label": {"party": "bank", "column": "kind"}, "method": {"warmup": 3},
            "training": {"batch": 512}, "evaluation": {"every": 5, "validation": 0.05},
            "parties": [{"name": n, "train": str(folder / f"{n}.parquet")} for n in ("bank", "clinic", "shop")],
        })  # fmt: skip
        times: list[float] = []
        begin = time.perf_counter()

        class Watch:
            def round_done(self, record: dict, rounds: int) -> None:
                times.append(time.perf_counter() - begin)

            def message(self, text: str, level: str = "info") -> None:
                print(text)

        metrics = run(config, folder / "run", watcher=Watch())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rounds = [b - a for a, b in itertools.pairwise(times)]
    result = {
        "rows": ROWS, "aligned": metrics["aligned"], "seconds": metrics["seconds"], "first_round_done": times[0],
        "round_before_selection": rounds[0], "round_with_selection": rounds[-1], "peak_bytes": peak,
        "validation": metrics["validation"],
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    write("vertical-million", result)


if __name__ == "__main__":
    main()
