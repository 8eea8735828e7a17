"""FLoRA: stacked factors give the exact mean of the products, for any ranks (Wang et al., arXiv 2409.05976).

    A = [A_1; ...; A_K],   B = [p_1 B_1, ..., p_K B_K],   B A = sum_k p_k B_k A_k

Every client adds B A to its base weights and starts the next round with new factors. Here the sum goes into the
adapter's frozen offset: clients that share a base in memory stay apart, and a client's result can still be exported.
(The paper's server scales A by p_k; the product is the same.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from h2tune.config import Experiment
from h2tune.methods.base import Method, ModelShape, PlannedBytes, Settings
from h2tune.methods.factors import FactorClient, FactorServer, Pair, stack
from h2tune.protocol.codec import Payload


class FloraClient(FactorClient):
    any_rank = True
    offset = True

    @classmethod
    def planned_bytes(cls, experiment: Experiment, settings: Any, shape: ModelShape) -> PlannedBytes:
        """Down comes the stack of all the group's factors."""
        planned = super().planned_bytes(experiment, settings, shape)
        ranks = sum(peer.rank for peer in shape.peers.values())
        return replace(planned, down=(planned.up or 0) // shape.rank * ranks)

    def receive(self, payload: Payload) -> None:
        """Fold the stack of the last round into the base, and begin with new factors and a new optimiser."""
        if not payload.tensors:
            return
        self.fold_in(payload.tensors)
        self.common_start(self.context.round)
        self.groups["adapter"].forget()


class FloraServer(FactorServer):
    client = FloraClient
    whole_rounds = True

    def combine(self, pairs: list[Pair], weights: list[float]) -> Pair:
        return stack(pairs, weights)

    def download(self, client: str) -> Payload:
        return self.everything(client)


Method(
    "flora",
    Settings,
    FloraClient,
    FloraServer,
    "stacked factors, folded into the base each round",
    source="Wang et al., arXiv 2409.05976",
    one_architecture=True,
)
