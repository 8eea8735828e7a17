"""The same work as an app of Flower, in its simulation: FedAvg over the LoRA's factors, one CPU a client.

    pip install "flwr[simulation]==1.42.0"
    SPEED_WORK=FOLDER SPEED_BASE=src/h2tune/zoo/weights/llama python benchmarks/speed/flower.py        # FOLDER from work.py

Written as Flower's documentation recommends: `ClientApp` and `ServerApp` with messages, arrays as records, what a client keeps
between rounds (AdamW's moments) in its context, the model loaded once in every actor and not for every message.
"""

from __future__ import annotations

import json
import time

import numpy as np
from bare import trained
from flower_app import FOLDER, client_app, in_this_actor
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


def server_app(rounds: int, ends: list[float], losses: list[float]) -> ServerApp:
    """FedAvg for some rounds; notes when each ends and its mean loss."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        def note(records: list[RecordDict], key: str) -> MetricRecord:
            ends.append(time.time())
            losses.append(sum(float(r["metrics"]["loss"]) for r in records) / len(records))
            return MetricRecord({"loss": losses[-1]})

        model, _, _ = in_this_actor()
        start = ArrayRecord({name: Array(p.detach().numpy()) for name, p in trained(model).items()})
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, train_metrics_aggr_fn=note)
        ends.append(time.time())
        strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds, train_config=ConfigRecord({}))

    return app


def main() -> None:
    shape = np.load(FOLDER / "batches.npz")["ids"].shape
    ends: list[float] = []
    losses: list[float] = []
    run_simulation(
        server_app=server_app(shape[1], ends, losses),
        client_app=client_app,
        num_supernodes=shape[0],
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    print(json.dumps({"losses": losses, "ends": ends}))


if __name__ == "__main__":
    main()
