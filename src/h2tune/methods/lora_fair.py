"""LoRA-FAIR: the server corrects the mean of B (Bian et al., arXiv 2411.14961).

    W = sum_k p_k B_k A_k,   A = sum_k p_k A_k,   B = sum_k p_k B_k
    D* = argmin_D  1 - cos(W, (B + D) A) + lambda ||D||_F,   clients start from (A, B + D*)

Found by L-BFGS on D alone, from D = 0. The distance (cosine) and lambda were read in third-party accounts.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from h2tune.methods.base import Method, Settings
from h2tune.methods.factors import FactorClient, FactorServer, Pair, mean, stack


class FairSettings(Settings):
    penalty: float = Field(0.01, ge=0, description="lambda, weight of the correction's norm")


def objective(delta: Tensor, target: Pair, shared: Pair, penalty: float) -> Tensor:
    """``1 - cos(W, (B + D) A) + lambda ||D||``, W given by the factors ``target``; no d_out x d_in matrix is built."""
    (a, b), (ta, tb) = (shared[0], shared[1] + delta), target
    inner = ((tb.T @ b) * (ta @ a.T)).sum()
    own = ((b.T @ b) * (a @ a.T)).sum().clamp_min(1e-300).sqrt()
    whole = ((tb.T @ tb) * (ta @ ta.T)).sum().clamp_min(1e-300).sqrt()
    return 1 - inner / (own * whole) + penalty * (delta.square().sum() + 1e-24).sqrt()


def correction(pairs: list[Pair], weights: list[float], penalty: float) -> Pair:
    """A and B + D*."""
    a = mean([a for a, _ in pairs], weights)
    b = mean([b for _, b in pairs], weights)
    target = tuple(t.double() for t in stack(pairs, weights))
    shared = a.double(), b.double()
    if not (target[1] @ target[0]).any():
        return a, b  # nothing has been learnt yet
    delta = torch.zeros_like(shared[1], requires_grad=True)
    solver = torch.optim.LBFGS([delta], max_iter=100, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def closure() -> Tensor:
        solver.zero_grad()
        loss = objective(delta, target, shared, penalty)  # type: ignore[arg-type]
        loss.backward()
        return loss

    solver.step(closure)
    with torch.no_grad():
        # The norm has a corner at 0: where no correction pays, D = 0 is the answer.
        better = objective(delta, target, shared, penalty) < objective(0 * delta, target, shared, penalty)  # type: ignore[arg-type]
    return a, b + delta.detach().to(b) if better else b


class FairServer(FactorServer):
    settings: FairSettings

    def combine(self, pairs: list[Pair], weights: list[float]) -> Pair:
        return correction(pairs, weights, self.settings.penalty)


Method(
    "lora-fair",
    FairSettings,
    FactorClient,
    FairServer,
    "FedIT with a correction of B at the server",
    source="Bian et al., arXiv 2411.14961 (distance and lambda from third-party accounts)",
    one_architecture=True,
)
