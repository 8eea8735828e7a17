"""What differential privacy of clients costs, by the number of clients: accuracy, epsilon and noise, of simulated federations.

Run as: python benchmarks/private.py                       # 3, 10, 60 and 600 clients; resumable
        python benchmarks/private.py --work FOLDER         # keeps run directories: a run that was stopped goes on
        python benchmarks/private.py --clients 3 10
        python benchmarks/private.py --rows                # instead: privacy of single rows inside one client

Every client has 20 rows of one task for the same small model, 6 updates a round and 4 rounds, all the same in every row of
the table; clients differ in their rows. Clipping and noise are those of `h2tune.aggregation.private`; the multiplier is
1.0, so that epsilon is the same in each row. Reported are means over the clients of the share of right answers and of the
loss on test rows, at the end and before; the norm of the core; and what the noise's norm is expected to be.

Expected before the runs with 60 and 600 clients: `clip: 0.1` stays near 0.57 nats however many clients there are, since
an unclipped update of a round has a norm of about 0.25 and the clip cuts off more than half of it; `clip: 1` comes near
the run without privacy at 60 (noise as large as the core) and equals it within 0.02 nats at 600.

With ``--rows`` two clients of 400 rows take part, of which the first protects its rows (`h2tune.participant.row_privacy`);
the figures are those of the first.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from common import about, amend, read
from safetensors.torch import load_file

RESULTS = Path(__file__).parent / "results" / "private.json"
CLIPS = (1.0, 0.1)
NOISE = 1.0


def federation(clients: int, clip: float | None, seed: int) -> Any:
    from h2tune.config import parse_config

    rows = []
    for i in range(clients):
        parts = {"train": 20, "validation": 8, "test": 16}
        data = {part: f"demo:fill?split={part}&n={n}&seed={1000 * seed + i}" for part, n in parts.items()}
        rows.append({"name": f"c{i}", "model": "zoo:llama", "task": "demo-fill"} | data)
    plain: dict[str, Any] = {
        "rounds": 4, "rank": 4, "anchors": "demo", "clients": rows, "device": "cpu", "weights": "uniform", "seed": seed,
        "training": {"steps": 6, "batch_size": 4}, "evaluation": {"every": 9},
    }  # fmt: skip
    if clip is not None:
        plain["privacy"] = {"clip": clip, "noise": NOISE}
    return parse_config(plain)


def measure(clients: int, clip: float | None, seed: int, work: Path | None = None) -> dict[str, Any]:
    """One run; with ``work`` its directory is kept there, and a run that was stopped goes on from its last round."""
    from h2tune import federation as engine

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = (work or Path(folder)) / f"{clients}-{clip}-{seed}"
        metrics = engine.run(federation(clients, clip, seed), place, resume=work is not None)
        core = load_file(place / "server" / "core.safetensors")["S"]
    rows = [client for client in metrics["clients"].values() if client["final"]]
    figures = {f"{when}_{key}": sum(row[when][key] for row in rows) / len(rows)
               for when in ("base", "final") for key in ("metric", "nats")}  # fmt: skip
    spent = metrics["privacy"]["epsilon"] if metrics["privacy"] else None
    noise = None if clip is None else NOISE * clip * math.sqrt(4 * core.numel()) / clients  # of four rounds
    return figures | {"clients": clients, "clip": clip, "seed": seed, "epsilon": spent, "core_norm": float(core.norm()),
                      "entries": core.numel(), "noise_norm": noise, "seconds": round(time.perf_counter() - begin, 1)}  # fmt: skip


def measure_rows(clip: float | None, noise: float, seed: int) -> dict[str, Any]:
    from h2tune import federation as engine
    from h2tune.config import RowPrivacy

    begin, whole = time.perf_counter(), federation(2, None, seed)
    settings = whole.training.model_copy(update={"steps": 25, "batch_size": 8})
    parts = ("train", "test")
    clients = [c.model_copy(update={p: f"demo:fill?split={p}&n={400 if p == 'train' else 200}&seed={1000 * seed + i}"
                                    for p in parts}) for i, c in enumerate(whole.clients)]  # fmt: skip
    if clip is not None:
        clients[0] = clients[0].model_copy(update={"row_privacy": RowPrivacy(clip=clip, noise=noise, delta=1e-3)})
    asked = whole.model_copy(update={"clients": clients, "training": settings})
    with tempfile.TemporaryDirectory() as folder:
        metrics = engine.run(asked, Path(folder) / "run")
        account = Path(folder) / "run" / "clients" / "c0" / "row_privacy.json"
        spent = json.loads(account.read_text()) if account.is_file() else {"epsilon": None, "updates": [0]}
    row = metrics["clients"]["c0"]
    figures = {f"{when}_{key}": row[when][key] for when in ("base", "final") for key in ("metric", "nats")}
    return figures | {"clip": clip, "noise": noise, "seed": seed, "epsilon": spent["epsilon"], "delta": 1e-3,
                      "updates": max(spent["updates"]), "seconds": round(time.perf_counter() - begin, 1)}  # fmt: skip


def rows_table(seeds: list[int]) -> None:
    place = RESULTS.with_name("row_privacy.json")
    for seed in seeds:
        for clip, noise in ((None, 0.0), (1.0, 0.5), (1.0, 1.0), (1.0, 2.0)):
            if any((r["clip"], r["noise"], r["seed"]) == (clip, noise, seed) for r in runs(place)):
                continue
            add(place, measure_rows(clip, noise, seed), {})


def runs(place: Path) -> list[dict[str, Any]]:
    return list(read(place).get("runs", []))


def add(place: Path, found: dict[str, Any], beside: dict[str, Any]) -> None:
    """Print a run and put it into a table, which other programs may be filling, too."""
    print(found, flush=True)
    amend(place, lambda known: about() | beside | {"runs": [*known.get("runs", []), found]})


def main() -> None:
    from h2tune.utils.logging import quiet_libraries

    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[3, 10, 60, 600])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--rows", action="store_true")
    asked = parser.parse_args()
    if asked.rows:
        return rows_table(asked.seeds)
    for clients in asked.clients:
        for seed in asked.seeds:
            for clip in (*CLIPS, None):
                if any((r["clients"], r["clip"], r["seed"]) == (clients, clip, seed) for r in runs(RESULTS)):
                    continue
                add(RESULTS, measure(clients, clip, seed, asked.work), {"noise": NOISE})


if __name__ == "__main__":
    main()
