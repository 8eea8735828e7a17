"""Scoring clients of one base model in passes that they share, against one client after the other, interleaved.

    OMP_NUM_THREADS=1 python benchmarks/speed/scoring.py
    OMP_NUM_THREADS=1 python benchmarks/speed/scoring.py --model MODELS/smollm2-135m --clients 4 --rows 8 --repeats 3

The clients are set up with `fedit` and have trained one round. Every repeat scores the test rows of all: nats alone as a
validation loss needs them, and whole, with the texts that are written. The clock is processor time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loop import interval_name, median_interval, write

from h2tune.config import parse_config
from h2tune.participant.base_models import ModelPool
from h2tune.server import Server
from h2tune.simulation.clients import Groups, in_process
from h2tune.store import RunStore
from h2tune.utils.logging import quiet_libraries


def federation(model: str, clients: int, rows: int, device: str) -> Any:
    """So many clients with so many test rows of a task whose answers are written."""
    mine = [
        {
            "name": f"c{i}",
            "model": model,
            "task": "demo-fill",
            "train": f"demo:fill?split=train&n=16&seed={i}",
            "validation": f"demo:fill?split=validation&n=4&seed={i}",
            "test": f"demo:fill?split=test&n={rows}&seed={i}",
        }
        for i in range(clients)
    ]
    return parse_config(
        {"clients": mine, "rounds": 9, "method": "fedit", "rank": 8, "parallel": clients, "device": device,
         "baseline": "none", "training": {"steps": 2, "batch_size": 4}, "evaluation": {"every": 9}}
    )  # fmt: skip


def measured(args: argparse.Namespace, rows: int) -> dict[str, Any]:
    """Seconds of scoring all clients, one after the other and side by side, and the largest difference of a score."""
    now = time.perf_counter if args.device == "cuda" else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        experiment, store = federation(args.model, args.clients, rows, args.device), RunStore(Path(folder) / "run")
        party = in_process(experiment, store, ModelPool(args.device))
        assert isinstance(party, Groups)
        server = Server(experiment, store.create(experiment), list(party.clients), party, store)
        server.open()
        server.one_round()
        contexts = [client.context for client in party.clients.values()]
        found: dict[str, Any] = {"rows": rows, "intervals": interval_name(args.repeats)}
        for name, only in (("nats", True), ("nats and texts", False)):

            def acts(only: bool = only) -> list[Callable[[], Any]]:
                return [lambda c=c: c.score(c.data.test, loss_only=only) for c in contexts]  # type: ignore[misc]

            seconds: dict[str, list[float]] = {"alone": [], "together": []}
            for _ in range(args.repeats + 1):
                begin = now()
                alone = [act() for act in acts()]
                seconds["alone"].append(now() - begin)
                begin = now()
                beside = party.trainer.together(acts())
                seconds["together"].append(now() - begin)
            gap = max(abs(a.nats - b.nats) for a, b in zip(alone, beside, strict=True))
            ratios = [a / b for a, b in zip(seconds["alone"][1:], seconds["together"][1:], strict=True)]
            found[name] = {k: median_interval(v[1:]) for k, v in seconds.items()} | {
                "alone over together": median_interval(ratios),
                "largest difference of nats": gap,
                "same accuracy": [a.metric for a in alone] == [b.metric for b in beside],
            }
            print(rows, name, found[name], flush=True)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:llama")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 8, 20, 64])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="`cpu` or `cuda`")
    parser.add_argument("--name", default="scoring", help="name of the result")
    args = parser.parse_args()
    quiet_libraries()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cells = [measured(args, rows) for rows in args.rows]
    write(f"speed/{args.name}", {"model": Path(args.model).name, "clients": args.clients, "cells": cells})


if __name__ == "__main__":
    main()
