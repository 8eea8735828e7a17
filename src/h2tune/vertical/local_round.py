"""A party's own part of a round: assign its unaligned rows to classes, keep some, train on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from h2tune.vertical.config import MethodConfig, Training
from h2tune.vertical.encoder import corrupt
from h2tune.vertical.fuse import loss
from h2tune.vertical.priors import class_shares, em_prior, mix, mixing_weight
from h2tune.vertical.prototypes import tied_means
from h2tune.vertical.select import agreement, cheapest, kept_share, soft_weights
from h2tune.vertical.transport_cost import transport

NAMELESS = (
    0.99  # a row farther from all class means than this share of the aligned rows may be of a class without a name
)


@dataclass(frozen=True)
class Assignment:
    """What a party makes of its rows.

    Attributes:
        targets: class probabilities (n x C).
        weights: how much each row counts, 0 for rows that are not kept (n).
        shares: estimated class shares of all its rows (C).
    """

    targets: Tensor
    weights: Tensor
    shares: Tensor

    @property
    def kept(self) -> Tensor:
        """Rows that count (indices)."""
        return torch.nonzero(self.weights > 0)[:, 0]


def assign(
    z: Tensor, labels: Tensor, nu: Tensor, mu: Tensor, pooled: Tensor, round: int, method: MethodConfig,
    declared: Tensor | None = None, aligned: Tensor | None = None,
) -> Assignment:  # fmt: skip
    """Assign rows to classes.

    Args:
        z: embeddings (n x d).
        labels: the party's own labels, -1 for unlabelled rows (n).
        nu: its slice of the top layer (C x d).
        mu: class means (C x d); a class whose row is zero has no prototype.
        pooled: everyone's class shares (C).
        declared: class shares of the unlabelled rows, if the party knows them (C).
        aligned: embeddings of its aligned rows, for `unseen: nameless` (N x d).
    """
    classes, known = len(nu), mu.norm(dim=1) > 0
    targets, weights = torch.zeros(len(z), classes), torch.zeros(len(z))
    own = labels >= 0
    targets[own] = F.one_hot(labels[own], classes).float()
    weights[own] = 1.0
    free = torch.nonzero(~own)[:, 0]
    shares = pooled
    if len(free) and bool(known.any()) and round >= method.warmup and method.select != "none":
        found, keep, shares = _assign_free(z[free], nu, mu, known, pooled, round, method, declared)
        targets[free], weights[free] = found, keep
        if aligned is not None and len(aligned) and int((~known).sum()) == 1:
            strange = free[_strange(z[free], aligned, mu[known])]
            targets[strange], weights[strange] = (~known).float(), 1.0
    labelled = class_shares(labels, classes)
    overall = (labelled + len(free) * shares) / max(len(z), 1)
    return Assignment(targets, weights, overall)


def _assign_free(
    z: Tensor, nu: Tensor, mu: Tensor, known: Tensor, pooled: Tensor, round: int, method: MethodConfig, declared: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    logits = (z @ nu.T).masked_fill(~known, -math.inf)
    log_p = logits.log_softmax(1)
    pooled = torch.where(known, pooled, 0.0)
    pooled = pooled / pooled.sum()
    if declared is not None and float(declared[known].sum()) <= 0:
        declared = None  # all of its mass is on classes that have no prototype yet
    local = em_prior(log_p, pooled) if declared is None else torch.where(known, declared, 0.0) / declared[known].sum()
    weight = {"global": 0.0, "local": 1.0}.get(method.prior, mixing_weight(len(z), round, method.warmup))
    prior = local if declared is not None else mix(local, pooled, weight)
    rho = math.inf if declared is not None else method.rho
    cost = -log_p
    if method.assign == "argmax":
        targets = F.one_hot(logits.argmax(1), len(nu)).float()
        spent = cost.amin(1)
    else:
        plan = transport(cost, prior, method.eps, 0.0 if method.assign == "posterior" else rho)
        targets, spent = plan.posterior, plan.cost
    weights = _weights(spent, targets, round, method)
    if method.agree and method.select != "all":
        weights = weights * agreement(logits, F.normalize(z, dim=1), mu)
    return targets, weights, local


def _strange(z: Tensor, aligned: Tensor, mu: Tensor) -> Tensor:
    """Rows that are like no class (n, bool).

    Aligned rows are all of known classes, so they say how near to its class mean a row of a known class is.

    Args:
        z, aligned: embeddings of the rows and of the aligned rows.
        mu: unit means of the known classes.
    """
    near, usual = ((F.normalize(rows, dim=1) @ mu.T).amax(1) for rows in (z, aligned))
    return near < torch.quantile(usual, 1 - NAMELESS)


def _weights(cost: Tensor, targets: Tensor, round: int, method: MethodConfig) -> Tensor:
    if method.select == "all":
        return torch.ones(len(cost))
    share = kept_share(round, method.warmup)
    if method.select == "soft":
        return soft_weights(cost, share)
    return cheapest(cost, targets.argmax(1), share).float()


def train(
    encoder: nn.Module, nu: Tensor, optimisers: list[torch.optim.Optimizer], x: Tensor, found: Assignment, mu: Tensor,
    method: MethodConfig, training: Training, generator: torch.Generator,
) -> None:  # fmt: skip
    """Steps on the kept rows, if any were kept."""
    kept = found.kept
    if not len(kept):
        return
    x, targets, weights = x[kept], found.targets[kept], found.weights[kept]
    shares = (weights[:, None] * targets).sum(0) / weights.sum()
    if not method.adjust:
        shares = (shares > 0).float()
    for _ in range(training.local_steps):
        rows = torch.randperm(len(x), generator=generator)[: training.batch]
        z = encoder(corrupt(x[rows], x, training.corrupt, generator))
        each = loss(z @ nu.T, targets[rows], shares)
        value = (weights[rows] * each).sum() / weights[rows].sum()
        if method.ct:
            means = mu if method.hypergradient == "first order" else _means_of(encoder, x, targets, weights, mu)
            value = value + method.ct * two_way(z, means, shares)
        for optimiser in optimisers:
            optimiser.zero_grad()
        torch.autograd.backward(value)
        for optimiser in optimisers:
            optimiser.step()


def _means_of(encoder: nn.Module, x: Tensor, targets: Tensor, weights: Tensor, mu: Tensor) -> Tensor:
    """Unit class means as a function of the network: the lower level's solution, with a ridge to the last means."""
    h = F.normalize(encoder(x), dim=1)
    return F.normalize(tied_means(h, weights[:, None] * targets, mu), dim=1)


def two_way(z: Tensor, mu: Tensor, prior: Tensor) -> Tensor:
    """Conditional transport both ways between rows and class means (Tanwisuth et al., NeurIPS 2021)."""
    near = F.normalize(z, dim=1) @ mu.T
    known = (mu.norm(dim=1) > 0) & (prior > 0)
    cost = 1 - near
    scores = near.masked_fill(~known, -1e9)
    to_class = (scores + prior.clamp_min(1e-9).log()).softmax(1)
    to_row = near.softmax(0)
    return (
        0.5 * (cost * to_class).sum(1).mean() + 0.5 * (torch.where(known, prior, 0.0) * (cost * to_row).sum(0)).sum()
    )
