"""FedIT: federated averaging of LoRA factors (Zhang et al., arXiv 2305.05644).

    A <- sum_k p_k A_k,   B <- sum_k p_k B_k,   p_k = n_k / sum n

Both factors travel both ways. The mean of the products is not the product of the means: the rule is biased.
"""

from __future__ import annotations

from h2tune.methods.base import Method, Settings
from h2tune.methods.factors import FactorClient, FactorServer, Pair, mean


class FedItServer(FactorServer):
    def combine(self, pairs: list[Pair], weights: list[float]) -> Pair:
        return mean([a for a, _ in pairs], weights), mean([b for _, b in pairs], weights)


Method(
    "fedit",
    Settings,
    FactorClient,
    FedItServer,
    "mean of A and mean of B",
    source="Zhang et al., arXiv 2305.05644",
    one_architecture=True,
)
