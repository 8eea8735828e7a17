"""The round interface is not about cores: methods that exchange texts, or embeddings, find their place in it."""

from __future__ import annotations

from typing import Any

import torch
from federations import build, small
from torch import Tensor

from h2tune.methods.base import ClientMethod, Method, OnStep, Settings
from h2tune.methods.local import LocalServer
from h2tune.protocol.codec import Payload


class _Toy(ClientMethod):
    def join(self, fresh: bool = True) -> Payload:
        self.seen: list[Any] = []
        return Payload()

    def state(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(len(self.seen))}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.seen = [None] * int(state["count"])


class _ToyServer(LocalServer):
    """Shares whatever a round summed up; all else as where nothing is shared."""

    def finish_round(self) -> None:
        self.shared = self.sum


class TextClient(_Toy):
    """Sends a sentence a round, and reads what everybody sent."""

    def train(self, round: int, payload: Payload, on_step: OnStep) -> tuple[Payload, dict[str, float]]:
        self.seen.append(payload.meta["texts"])
        return Payload(meta={"texts": [f"{self.client.name} in round {round}"]}), {}


class TextServer(_ToyServer):
    shared: list[str] = []

    def download(self, client: str) -> Payload:
        return Payload(meta={"texts": self.shared})

    def start_round(self) -> None:
        self.sum: list[str] = []

    def add(self, client: str, payload: Payload, weight: int) -> None:
        self.sum = sorted([*self.sum, *payload.meta["texts"]])


class EmbeddingClient(_Toy):
    """Sends the embedding of its own round number, and gets the mean."""

    def train(self, round: int, payload: Payload, on_step: OnStep) -> tuple[Payload, dict[str, float]]:
        self.seen.append(payload.tensors["mean"])
        own = torch.full((3,), float(round + int(self.client.name[1:])))
        return Payload({"embedding": own}), {}


class EmbeddingServer(_ToyServer):
    shared = torch.zeros(3)

    def download(self, client: str) -> Payload:
        return Payload({"mean": self.shared})

    def start_round(self) -> None:
        self.parts: list[Tensor] = []

    def add(self, client: str, payload: Payload, weight: int) -> None:
        self.parts.append(payload.tensors["embedding"])

    def finish_round(self) -> None:
        self.shared = torch.stack(self.parts).mean(0)


Method("toy-texts", Settings, TextClient, TextServer, "texts")
Method("toy-embeddings", Settings, EmbeddingClient, EmbeddingServer, "embeddings")


def rounds(method: str, folder: Any) -> dict[str, Any]:
    """Open and run all rounds; these toys train no adapter, so there is nothing to score."""
    experiment = small(rounds=3, method=method, evaluation={"every": 99})
    server, clients = build(experiment, folder)
    for client in clients.values():
        client._score = lambda *a, **k: type("S", (), {"plain": lambda self: {"metric": 0.0, "nats": 0.0}})()
    server.open()
    while server.round < 3:
        server.one_round()
    return clients


def test_texts_go_round(tmp_path: Any) -> None:
    clients = rounds("toy-texts", tmp_path / "run")
    for client in clients.values():
        assert client.method.seen == [[], ["c0 in round 1", "c1 in round 1"], ["c0 in round 2", "c1 in round 2"]]


def test_embeddings_go_round(tmp_path: Any) -> None:
    clients = rounds("toy-embeddings", tmp_path / "run")
    for client in clients.values():
        assert [float(seen[0]) for seen in client.method.seen] == [0.0, 1.5, 2.5]
