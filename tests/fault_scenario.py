"""A federation over a simulated network, in which a test plants faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from federations import core, small
from safetensors.torch import load_file
from simulated_network import FEDERATION, SimulatedClient, SimulatedNetwork, kits, participant

from h2tune.config import Experiment
from h2tune.deployment.serve import serve

WAITS = {"deadline": 60, "silence": 5, "gather": 30, "patience": 300}
# Faults are of the rounds, not of the training: as little of it as shows in the bits.
QUICK: dict[str, Any] = {"training": {"steps": 2, "batch_size": 4}, "evaluation": {"every": 9}, "rank": 2}


def quick(**changes: Any) -> Experiment:
    """The federation of a scenario."""
    return small(network=WAITS, **(QUICK | changes))


class FaultScenario:
    """Two clients and a server over a simulated network."""

    def __init__(
        self, folder: Path, experiment: Experiment | None = None, federation: str = FEDERATION, **changes: Any
    ) -> None:
        self.experiment = experiment or quick(**changes)
        self.folder, self.network = folder, SimulatedNetwork()
        self.network.federation = federation
        self.kits = kits(self.experiment, folder, federation)
        self.clients: dict[str, SimulatedClient] = {}
        for client in self.experiment.clients:
            own = {"model": client.model, "train": client.train, "test": client.test, "validation": client.validation}
            make = participant(self.kits[client.name], own)
            self.clients[client.name] = SimulatedClient(self.network, client.name, make)

    def serve(self, start: bool = True) -> dict[str, Any]:
        if start:
            for client in self.clients.values():
                client.start()
        return serve(self.kits["server"], engine=self.network.engine, clock=self.network.clock)

    def outcome(self) -> dict[str, torch.Tensor]:
        found = core(self.folder / "server" / "run")
        for name in self.clients:
            tensors = load_file(self.folder / name / "state" / "adapter" / "adapter_model.safetensors")
            found |= {f"{name}.{k}": v for k, v in tensors.items()}
        return found

    def outcome_without(self, gone: str) -> dict[str, torch.Tensor]:
        """As `outcome`, of a federation that this client left."""
        clients, self.clients = self.clients, {name: c for name, c in self.clients.items() if name != gone}
        found, self.clients = self.outcome(), clients
        return found

    def outcome_of_core(self) -> torch.Tensor:
        return load_file(self.folder / "server" / "run" / "server" / "core.safetensors")["S"]

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.folder / "server" / "run" / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]
