"""FedEx-LoRA: the means of the factors, and what they miss goes into the base (Singhal et al., arXiv 2410.09432).

    A <- sum_k p_k A_k,   B <- sum_k p_k B_k,   W_0 <- W_0 + (sum_k p_k B_k A_k - B A)

so that every client has exactly the mean of the products. The remainder travels as factors:
[p_1 B_1, ..., p_K B_K, -B] [A_1; ...; A_K; A].
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from h2tune.config import Experiment
from h2tune.methods.base import Method, ModelShape, PlannedBytes, Settings
from h2tune.methods.factors import FactorClient, FactorServer, Pair, mean, stack
from h2tune.protocol.codec import Payload


def remainder(pairs: list[Pair], weights: list[float], shared: Pair) -> Pair:
    """Factors of ``sum_k p_k B_k A_k - B A``."""
    return stack([*pairs, shared], [*weights, -1.0])


class FedExClient(FactorClient):
    offset = True

    @classmethod
    def planned_bytes(cls, experiment: Experiment, settings: Any, shape: ModelShape) -> PlannedBytes:
        """Down come the means, and as the remainder the stack of all the group's factors and of the means."""
        planned = super().planned_bytes(experiment, settings, shape)
        ranks = sum(peer.rank for peer in shape.peers.values())
        return replace(planned, down=(planned.up or 0) // shape.rank * (ranks + 2 * shape.rank))

    def receive(self, payload: Payload) -> None:
        rest = {k.removeprefix("rest."): t for k, t in payload.tensors.items() if k.startswith("rest.")}
        super().receive(Payload({k: t for k, t in payload.tensors.items() if not k.startswith("rest.")}))
        if rest:
            self.fold_in(rest)


class FedExServer(FactorServer):
    client = FedExClient
    whole_rounds = True

    def combine_group(self, base: str, names: list[str], weights: list[float]) -> None:
        for index in range(len(self.known[names[0]]["maps"])):
            pairs: list[Pair] = [(self.updates[n][f"{index}.A"], self.updates[n][f"{index}.B"]) for n in names]
            shared = mean([a for a, _ in pairs], weights), mean([b for _, b in pairs], weights)
            rest = remainder(pairs, weights, shared)
            for prefix, (a, b) in (("", shared), ("rest.", rest)):
                self.factors[f"{base}/{prefix}{index}.A"] = a
                self.factors[f"{base}/{prefix}{index}.B"] = b

    def download(self, client: str) -> Payload:
        return self.everything(client)


Method(
    "fedex",
    Settings,
    FedExClient,
    FedExServer,
    "means of A and B, the remainder goes into the base",
    source="Singhal et al., arXiv 2410.09432",
    one_architecture=True,
)
