"""FlexLoRA: the mean of the products, cut to each client's rank by SVD (Bai et al., arXiv 2402.11505).

    W = sum_k p_k B_k A_k = U Sigma V^T,   B_k <- U[:, :r_k] Sigma[:r_k],   A_k <- V[:, :r_k]^T

The decomposition is worked out from the stacked factors: nothing of size d_out x d_in is built.
"""

from __future__ import annotations

import torch
from torch import Tensor

from h2tune.methods.base import Method, Settings
from h2tune.methods.factors import FactorClient, FactorServer, Pair, stack


def product_svd(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, Sigma, V^T of ``b @ a``, as many as a has rows."""
    qb, rb = torch.linalg.qr(b.double())
    qa, ra = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    # Signs are fixed, so that every machine sends the same.
    sign = u.gather(0, u.abs().argmax(0, keepdim=True)).sign().squeeze(0)
    return qb @ (u * sign), s, (vh * sign[:, None]) @ qa.T


class FlexLoraClient(FactorClient):
    any_rank = True


class FlexLoraServer(FactorServer):
    client = FlexLoraClient

    def combine(self, pairs: list[Pair], weights: list[float]) -> Pair:
        a, b = stack(pairs, weights)
        u, s, vh = product_svd(a, b)
        rank = min(self.experiment.rank, len(s))
        missing = self.experiment.rank - rank  # a small map may have fewer directions than the rank asks for
        a = torch.nn.functional.pad(vh[:rank], (0, 0, 0, missing)).to(a.dtype)
        return a, torch.nn.functional.pad(u[:, :rank] * s[:rank], (0, missing)).to(b.dtype)


Method(
    "flexlora",
    Settings,
    FlexLoraClient,
    FlexLoraServer,
    "mean of the products, cut to each rank by SVD",
    source="Bai et al., arXiv 2402.11505",
    one_architecture=True,
)
