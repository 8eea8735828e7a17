"""FedSA-LoRA: both factors are trained, only A is averaged, B stays with the client (Guo et al., arXiv 2410.01463).

A <- sum_k p_k A_k,   B_k private
"""

from __future__ import annotations

from h2tune.methods.base import Method, Settings
from h2tune.methods.factors import FactorClient, FactorServer, Pair, mean


class FedSaClient(FactorClient):
    sends = ("A",)


class FedSaServer(FactorServer):
    client = FedSaClient

    def combine(self, pairs: list[Pair], weights: list[float]) -> Pair:
        return mean([a for a, _ in pairs], weights), None  # type: ignore[return-value]


Method(
    "fedsa",
    Settings,
    FedSaClient,
    FedSaServer,
    "mean of A, B private",
    source="Guo et al., arXiv 2410.01463",
    one_architecture=True,
)
