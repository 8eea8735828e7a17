"""Class shares: estimated at a party from unlabelled rows, pooled over parties, and mixed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EM_STEPS = 3  # to convergence the estimate runs away on weak views
TRUST = 50  # unaligned rows at which a party's own estimate weighs as much as everyone's
GROWTH = 10.0  # rounds over which that weight builds up


def em_prior(log_p: Tensor, start: Tensor, steps: int = EM_STEPS) -> Tensor:
    """Class shares of unlabelled rows by expectation-maximisation (Saerens et al., Neural Computation 2002).

    Args:
        log_p: log class probabilities of n rows under a uniform prior (n x C); -inf where a class cannot be.
        start: shares to begin from (C).
    """
    prior = start / start.sum()
    for _ in range(steps):
        prior = (log_p + prior.log()).softmax(1).mean(0)
    return prior


def global_prior(labelled: Tensor, parties: list[tuple[int, Tensor]]) -> Tensor:
    """Everyone's class shares: the active party's label counts and each passive party's rows times its shares.

    The 1 that every class gets keeps a class that nobody has labelled possible.

    Args:
        labelled: rows of each class at the active party (C).
        parties: number of unaligned rows and class shares (C) of each passive party.
    """
    mass = 1.0 + labelled
    for rows, shares in parties:
        mass = mass + rows * shares
    return mass / mass.sum()


def mix(local: Tensor, pooled: Tensor, weight: float) -> Tensor:
    """``weight`` of the local shares and the rest of the pooled ones."""
    return weight * local + (1 - weight) * pooled


def mixing_weight(rows: int, round: int, start: int) -> float:
    """Weight of a party's own prior: grows with its rows and with the rounds since selection began."""
    return rows / (rows + TRUST) * (1 - math.exp(-(round - start + 1) / GROWTH)) if round >= start else 0.0


def class_shares(labels: Tensor, classes: int) -> Tensor:
    """Rows of each class (C), as floats; labels below 0 are left out."""
    return torch.bincount(labels[labels >= 0], minlength=classes).float()
