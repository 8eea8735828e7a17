"""Sixty rounds of three parties over the real engine on this machine: time to join, time of exchanges, bytes.

python benchmarks/vertical/network.py

The cost of the exchanges is the time that the active party waits for answers, less the time that the parties compute: both
are measured in the processes themselves. Processes share this machine's cores.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from grid import write

from h2tune.config import NetworkConfig
from h2tune.deployment.vertical import provision_vertical
from h2tune.vertical.config import VerticalConfig, load_vertical
from h2tune.vertical.demo import write_demo
from h2tune.vertical.federation import run

ROUNDS = 60
CHILD = """
import json, sys, time
import torch
from h2tune.deployment.kits import Kit
from h2tune.deployment import vertical as v
from h2tune.vertical.exchange import Exchange
from h2tune.vertical.passive import Passive
torch.set_num_threads(1)
kit, own, spent = Kit(sys.argv[1]), json.loads(sys.argv[2]), [0.0]
def timed(call):
    def inner(self, *values):
        begin = time.perf_counter()
        try:
            return call(self, *values)
        finally:
            if getattr(self, "round", 1) > 0:
                spent[0] += time.perf_counter() - begin
    return inner
owner, name = (Exchange, "ask") if kit.about.role == "server" else (Passive, "handle")
setattr(owner, name, timed(getattr(owner, name)))
(v.serve_vertical if kit.about.role == "server" else v.attend_vertical)(kit, own)
(kit.folder / "spent.json").write_text(json.dumps(spent[0]))
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def federated(folder: Path, config: VerticalConfig) -> dict[str, Any]:
    """A run in three processes."""
    kits = folder / "kits"
    provision_vertical(config, kits)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    begin, processes = time.perf_counter(), []
    for party in config.parties:
        kit = kits / ("server" if party.name == config.label.party else party.name)
        own = json.dumps({"train": party.train, "test": party.test})
        processes.append(subprocess.Popen([sys.executable, "-c", CHILD, str(kit), own], env=environment))
    for process in processes:
        assert process.wait() == 0
    whole = time.perf_counter() - begin
    metrics = json.loads((kits / "server" / "run" / "metrics.json").read_text())
    spent = {p.name: json.loads((kits / p.name / "spent.json").read_text()) for p in config.passive}
    waited = json.loads((kits / "server" / "spent.json").read_text())
    rounds = sum(record["seconds"] for record in metrics["history"])
    return {
        "seconds": whole, "seconds_to_join": metrics["seconds_to_join"], "seconds_of_rounds": rounds,
        "waited_for_answers": waited, "computed_by_parties": spent, "exchanges": waited - max(spent.values()),
        "exchanges_if_parties_took_turns": waited - sum(spent.values()), "bytes": metrics["bytes"], "final": metrics["final"],
    }  # fmt: skip


def main() -> None:
    """Run, print, keep."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = load_vertical(write_demo(folder / "data")).model_dump(mode="json")
        plain |= {"rounds": ROUNDS, "baseline": "none", "align": {"salt": "benchmark"}}
        plain["network"] = NetworkConfig(port=free_port(), gather=300).model_dump(mode="json")
        config = VerticalConfig.model_validate(plain)
        begin = time.perf_counter()
        alone = run(config, folder / "here")
        here = time.perf_counter() - begin
        result = federated(folder, config) | {
            "rounds": ROUNDS,
            "one_process_seconds": here,
            "same_scores": False,
            "load": os.getloadavg(),
        }
        result["same_scores"] = result["final"] == alone["final"]
    print(json.dumps({k: v for k, v in result.items() if k != "bytes"}, indent=1))
    write("vertical-network", result)


if __name__ == "__main__":
    main()
