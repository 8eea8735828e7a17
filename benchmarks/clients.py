"""Sixty clients on three base models in one process: how much base memory they add.

Run as: python benchmarks/clients.py
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import psutil
from common import write

from h2tune.utils.logging import quiet_libraries


def resident_bytes() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def main() -> None:
    quiet_libraries()
    from h2tune.client import Client
    from h2tune.config import parse_config
    from h2tune.participant.base_models import ModelPool
    from h2tune.participant.context import make_accelerator
    from h2tune.server import Server
    from h2tune.store import RunStore
    from h2tune.tasks.demo_problems import demo_anchors
    from h2tune.transport.inprocess import InProcess

    def federation(count: int, folder: Path, models: ModelPool) -> tuple[Server, dict[str, Client]]:
        formats = (("fill", "zoo:llama"), ("choice", "zoo:gpt2"), ("program", "zoo:qwen"))
        rows = []
        for i in range(count):
            kind, model = formats[i % 3]
            data = {part: f"demo:{kind}?split={part}&n=20&seed={i}" for part in ("train", "validation", "test")}
            rows.append({"name": f"c{i}", "model": model, "task": f"demo-{kind}"} | data)
        experiment = parse_config(
            {"rounds": 1, "rank": 16, "anchors": "demo", "clients": rows, "device": "cpu", "method": {"name": "h2tune", "frames": "anchor"},
             "training": {"steps": 2, "batch_size": 4}}
        )  # fmt: skip
        store = RunStore(folder)
        identity = store.create(experiment)
        accelerator = make_accelerator(experiment, "cpu")
        clients = {
            c.name: Client(c, experiment, models, demo_anchors(60), store.client(c.name), None, accelerator)
            for c in experiment.clients
        }
        return Server(experiment, identity, list(clients), InProcess(clients), store), clients

    with tempfile.TemporaryDirectory() as folder:
        # A small federation first, so that one-time costs (libraries, buffers) are not counted.
        models = ModelPool("cpu")
        server, clients = federation(3, Path(folder) / "warm", models)
        server.run()
        del server, clients
        models.release()
        before = resident_bytes()
        server, clients = federation(60, Path(folder) / "run", models)
        server.open()
        server.one_round()
        grown = resident_bytes() - before
        models = len({id(c.context.base.model) for c in clients.values()})
        computed = 0
        for client in clients.values():
            trained = [*client.method.factors, *client.method.middles, *client.method.core.parameters()]
            gradients = [p.grad for p in trained if p.grad is not None]
            computed += sum(t.numel() * t.element_size() for t in [*trained, *gradients])
            moments = {k: v for k, v in client.method.state().items() if "exp_avg" in k}
            computed += sum(t.numel() * t.element_size() for t in moments.values())
            data = client.context.data
            rows = [row for part in (data.train, data.validation, data.test) for row in part.encoded]
            computed += sum(8 * 2 * len(row.input_ids) for row in rows)
    print(f"base models base {models}; growth {grown / 1e6:.1f} MB, computed {computed / 1e6:.1f} MB,"
          f" ratio {grown / computed:.2f}")  # fmt: skip
    write("clients", {"clients": 60, "models": models, "grown_bytes": grown, "computed_bytes": computed,
                      "ratio": grown / computed})  # fmt: skip


if __name__ == "__main__":
    main()
