"""Co-LoRA at the server: mixtures of P and q, and means of what only fits between equal models (arXiv 2506.11024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from h2tune.config import Experiment
from h2tune.errors import ProtocolError
from h2tune.methods.base import OneExchange
from h2tune.methods.colora_align import guide_fault, relevance
from h2tune.methods.colora_settings import CoLoraSettings
from h2tune.methods.colora_sketch import SKETCH
from h2tune.methods.factors import mean
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Ask, Reply


class CoLoraServer(OneExchange):
    """Keeps a round's updates until its end; the mixtures are small, the factors of equal models are not.

    Attributes:
        known: introductions. pivot: the client whose model the others are aligned with. guide: its description.
        count: number of anchor blocks. sketches: by client.
        gone: who was excluded when the round began. mixed: each client's mixture. groups: by base model, the mean of what only fits between equal models.
    """

    settings: CoLoraSettings
    needs = ("depth", "slots", "fingerprint")

    def __init__(self, experiment: Experiment, settings: CoLoraSettings) -> None:
        super().__init__(experiment, settings)
        self.pivot, self.count = "", 0
        self.known: dict[str, dict[str, Any]] = {}
        self.gone: list[str] = []
        self.guide: dict[str, Tensor] = {}
        self.sketches: dict[str, Tensor] = {}
        self.mixed: dict[str, dict[str, Tensor]] = {}
        self.groups: dict[str, dict[str, Tensor]] = {}
        self.mixture: dict[str, list[float]] = {}

    def check_introduction(self, name: str, payload: Payload) -> None:
        super().check_introduction(name, payload)
        sketch = payload.tensors.get("sketch", torch.zeros(0))
        if self.settings.relevance == "sketch" and tuple(sketch.shape) != (SKETCH,):
            raise ProtocolError("its introduction holds no sketch")
        if self.known and payload.meta["depth"] < self.count:
            raise ProtocolError(
                f"its model has {payload.meta['depth']} blocks, and the others exchange {self.count}: join from the"
                " first round, or lower method.blocks"
            )

    def describers(self, joined: dict[str, Payload]) -> list[str]:
        if self.known:
            return []
        # The deepest model has most to say; equal depths in the order of the names.
        self.pivot = min(joined, key=lambda n: (-joined[n].meta["depth"], n))
        return [self.pivot]

    def misfits(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, str]:
        blocks, rank, found = self.settings.blocks, self.experiment.rank, {}
        for name, payload in described.items():
            meta = joined[name].meta
            places = [f"{k}.{s}" for k in range(min(blocks, meta["depth"])) for s in meta["slots"]]
            if fault := guide_fault(payload.tensors, places, rank):
                found[name] = fault
        return found

    def open(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        if not self.known:
            self.guide = described[self.pivot].tensors
            self.count = min(self.settings.blocks, *(p.meta["depth"] for p in joined.values()))
        self.known |= {name: dict(p.meta) for name, p in joined.items()}
        for name, payload in joined.items():
            if self.settings.relevance == "sketch":
                self.sketches[name] = payload.tensors["sketch"]
        return {name: self._welcome(name, fresh=True) for name in joined}

    def _welcome(self, name: str, fresh: bool) -> Payload:
        own, pivot = self.known[name]["fingerprint"], self.known[self.pivot]["fingerprint"]
        guide = self.guide if fresh and own != pivot else {}
        return Payload(dict(guide), {"blocks": self.count})

    def _has_twin(self, client: str) -> bool:
        """Whether another client that has joined so far has the same base; who joins late may be the first.

        Who is excluded in a round counts until its end: an update is judged by what its sender was told.
        """
        own, gone = self.known[client]["fingerprint"], {client, *self.gone}
        return any(k["fingerprint"] == own for n, k in self.known.items() if n not in gone)

    def download(self, client: str) -> Payload:
        own = self.groups.get(self.known[client]["fingerprint"], {})
        tensors = self.mixed.get(client, {}) | {f"own.{k}": t for k, t in own.items()}
        return Payload(tensors, {"twins": self._has_twin(client)})

    def run_round(self, ask: Ask, number: int, selected: list[str]) -> None:
        self.gone = ask.excluded()
        super().run_round(ask, number, selected)

    def start_round(self, number: int, selected: list[str]) -> None:
        self.updates: dict[str, dict[str, Tensor]] = {}
        self.weights: dict[str, int] = {}

    def add(self, reply: Reply) -> None:
        client, payload = reply.client, reply.payload
        rank, known = self.experiment.rank, self.known[client]
        shapes: dict[str, tuple[int, ...]] = {}
        for place in range(self.count):
            for slot in known["slots"]:
                shapes |= {f"T.{place}.{slot}": (rank, rank), f"q.{place}.{slot}": (rank,)}
        got = {k: tuple(t.shape) for k, t in payload.tensors.items() if not k.startswith("own.")}
        if got != shapes or not all(t.is_floating_point() for t in payload.tensors.values()):
            raise ProtocolError(f"the update of {client} holds other tensors than it may send")
        own = {k: tuple(t.shape) for k, t in payload.tensors.items() if k.startswith("own.")}
        if own and not self._has_twin(client):
            raise ProtocolError(f"{client} has no peer on its base model and may not send factors")
        if not own and self._has_twin(client):  # else it would set what the updates of its honest peers must look like
            raise ProtocolError(f"the update of {client} lacks the factors that it shares with its peers")
        for other in self.updates:
            if self.known[other]["fingerprint"] == known["fingerprint"]:
                theirs = {k: tuple(t.shape) for k, t in self.updates[other].items() if k.startswith("own.")}
                if own != theirs:
                    raise ProtocolError(
                        f"the factors of {client} do not fit those of {other}, which has the same base"
                    )
        self.updates[client], self.weights[client] = payload.tensors, self.weight(reply)

    def finish_round(self) -> None:
        names = sorted(self.updates)
        if self.settings.relevance == "sketch":
            weights = relevance(torch.stack([self.sketches[n] for n in names]), self.settings.temperature)
        else:
            weights = torch.full((len(names), len(names)), 1 / len(names), dtype=torch.float64)
        for k, name in enumerate(names):
            self.mixed[name] = self._mixture(name, names, weights[k])
        self.mixture = {n: row.tolist() for n, row in zip(names, weights, strict=True)}
        for base in {self.known[n]["fingerprint"] for n in names}:
            group = [n for n in names if self.known[n]["fingerprint"] == base]
            total = sum(self.weights[n] for n in group)
            shares = [self.weights[n] / total for n in group]
            keys = [key for key in self.updates[group[0]] if key.startswith("own.")]
            self.groups[base] = {k[4:]: mean([self.updates[n][k] for n in group], shares) for k in keys}

    def _mixture(self, name: str, names: list[str], weights: Tensor) -> dict[str, Tensor]:
        """The client's own mean, over those who have the slot."""
        found = {}
        for key in self.updates[name]:
            if not key.startswith("own."):
                held = [
                    (w, self.updates[n][key]) for w, n in zip(weights, names, strict=True) if key in self.updates[n]
                ]
                total = sum(w for w, _ in held)
                found[key] = sum(w / total * t.double() for w, t in held).to(self.updates[name][key].dtype)
        return found

    def state(self) -> dict[str, Tensor]:
        found = {f"mixed/{n}/{k}": t for n, tensors in self.mixed.items() for k, t in tensors.items()}
        found |= {f"group/{b}/{k}": t for b, tensors in self.groups.items() for k, t in tensors.items()}
        return found | {f"sketch/{n}": t for n, t in self.sketches.items()}

    def plain_state(self) -> dict[str, Any]:
        return {"known": self.known, "pivot": self.pivot, "count": self.count}

    def fixed(self) -> dict[str, Tensor]:
        return self.guide

    def rejoin(self, client: str) -> Payload:
        return self._welcome(client, fresh=False)

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        self.known, self.pivot, self.count, self.guide = plain["known"], plain["pivot"], plain["count"], fixed
        self.mixed, self.groups, self.sketches = {}, {}, {}
        homes = {"mixed": self.mixed, "group": self.groups}
        for key, tensor in tensors.items():
            kind, owner, *rest = key.split("/")
            if kind == "sketch":
                self.sketches[owner] = tensor.clone()
            else:
                homes[kind].setdefault(owner, {})[rest[0]] = tensor.clone()

    def report(self) -> dict[str, Any]:
        return {"pivot": self.pivot, "mixture": self.mixture}
