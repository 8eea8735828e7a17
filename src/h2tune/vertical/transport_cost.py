"""Conditional transport between rows and class prototypes: Sinkhorn in the log domain, class masses held softly.

Solves, over plans ``G`` (n x C) whose rows sum to 1/n,

    min <G, M> + eps KL(G | a x b) + rho KL(G^T 1 | b)

with ``a`` uniform and ``b`` a prior over classes. ``rho`` = inf holds the class masses exactly (balanced transport);
``rho`` = 0 leaves them free, and the plan is then the prior-weighted posterior of conditional transport
(Tanwisuth et al., NeurIPS 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """A transport plan.

    Attributes:
        mass: ``G`` (n x C); each row sums to 1/n.
        posterior: ``n G``, the class probabilities of each row.
        cost: the transport cost of each row (n): its cost averaged over its own posterior.
    """

    mass: Tensor
    posterior: Tensor
    cost: Tensor


def transport(cost: Tensor, prior: Tensor, eps: float = 1.0, rho: float = 1.0, iterations: int = 30) -> Plan:
    """The plan from n rows to C classes.

    Args:
        cost: M (n x C), infinite where a class has no prototype.
        prior: b (C), non-negative; a class of no mass receives none.
        eps: strength of the entropic term, above 0.
        rho: strength of the hold on the class masses; ``math.inf`` for exact masses.
        iterations: updates of the two potentials.
    """
    log_b = prior.clamp_min(0).log()
    kernel = -cost / eps
    log_a = torch.full((len(cost),), -math.log(len(cost)), dtype=cost.dtype)
    # Potentials divided by eps; the column potential is relative to the prior, so that 0 leaves the prior as it is.
    column = torch.zeros_like(log_b)
    hold = 1.0 if math.isinf(rho) else rho / (rho + eps)
    row = log_a - torch.logsumexp(kernel + log_b, 1)
    for _ in range(iterations if hold else 0):
        reached = torch.logsumexp(row[:, None] + kernel, 0)
        column = torch.where(reached.isfinite(), -hold * reached, 0.0)
        row = log_a - torch.logsumexp(kernel + log_b + column, 1)
    mass = (row[:, None] + kernel + log_b + column).exp()
    posterior = mass * len(cost)
    # A class of infinite cost has no mass; 0 x inf would not be a number.
    paid = torch.where(mass > 0, cost, 0.0)
    return Plan(mass, posterior, (posterior * paid).sum(1))


def objective(mass: Tensor, cost: Tensor, prior: Tensor, eps: float = 1.0, rho: float = 1.0) -> Tensor:
    """What `transport` minimises, at a plan; with ``rho`` = inf the last term is left out."""
    reference = prior[None, :] / len(cost)
    value = (mass * cost).sum() + eps * _divergence(mass, reference.expand_as(mass))
    return value if math.isinf(rho) else value + rho * _divergence(mass.sum(0), prior)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL of two measures that need not sum to one."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q) - p + q).sum()
