"""FFA-LoRA: A is random, common and frozen; only B is trained and averaged (Sun et al., arXiv 2403.12313).

A = A_0,   B <- sum_k p_k B_k,   so that   B A = sum_k p_k B_k A   exactly
"""

from __future__ import annotations

from h2tune.methods.base import Method, Settings
from h2tune.methods.factors import FactorClient, FactorServer, Pair, mean


class FfaClient(FactorClient):
    sends = ("B",)
    trains = ("B",)


class FfaServer(FactorServer):
    client = FfaClient

    def combine(self, pairs: list[Pair], weights: list[float]) -> Pair:
        return None, mean([b for _, b in pairs], weights)  # type: ignore[return-value]


Method(
    "ffa",
    Settings,
    FfaClient,
    FfaServer,
    "A common and frozen, mean of B",
    source="Sun et al., arXiv 2403.12313",
    one_architecture=True,
)
