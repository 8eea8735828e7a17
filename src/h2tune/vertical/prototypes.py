"""Class prototypes: means of unit embeddings (`mu`), and the slices of the top layer (`nu`) that start from them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.1  # of the relations between classes
RIDGE = 1.0


def class_means(h: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Unit means and masses of classes.

    Args:
        h: unit embeddings (n x d).
        weights: how much of each row belongs to each class (n x C).

    Returns:
        Means (C x d), a zero row for a class of no mass, and masses (C).
    """
    return F.normalize(weights.T @ h, dim=1), weights.sum(0)


def tied_means(h: Tensor, weights: Tensor, anchors: Tensor, ridge: float = RIDGE) -> Tensor:
    """Class means (C x d) that minimise weighted squared distances plus ``ridge`` times those to the anchors.

    The lower level of the two: strongly convex, in closed form, and differentiable in ``h``.

    Args:
        h: embeddings (n x d).
        weights: how much of each row belongs to each class (n x C).
        anchors: what the means are tied to (C x d).
    """
    return (weights.T @ h + ridge * anchors) / (weights.sum(0)[:, None] + ridge)


def merge(means: list[Tensor], masses: list[Tensor]) -> Tensor:
    """Unit means (C x d) of sets whose own means and masses are known."""
    total = sum((mass[:, None] * mean for mean, mass in zip(means, masses, strict=True)), torch.zeros_like(means[0]))
    return F.normalize(total, dim=1)


def from_means(nu: Tensor, mu: Tensor, rows: Tensor, seen: Tensor) -> Tensor:
    """`nu` (C x d) with the given rows replaced by the means, at the mean length of the seen rows.

    Args:
        rows: classes to replace (C, bool); those without a mean stay.
        seen: classes whose rows were trained (C, bool).
    """
    length = nu[seen].norm(dim=1).mean() if bool(seen.any()) else torch.ones(())
    return torch.where((rows & (mu.norm(dim=1) > 0))[:, None], mu * length, nu)


def relations(mu: Tensor, known: Tensor) -> Tensor:
    """How like each class is to the known others: row-stochastic (C x C), zero diagonal."""
    near = mu @ mu.T / TEMPERATURE
    near = near.masked_fill(torch.eye(len(mu), dtype=torch.bool) | ~known[None, :], -torch.inf)
    return near.softmax(1).nan_to_num(0.0)


def from_descriptions(nu: Tensor, vectors: Tensor, seen: Tensor) -> Tensor:
    """`nu` (C x d) with the rows of unseen classes predicted from public vectors of the classes, by ridge regression.

    Args:
        vectors: one row a class (C x q).
        seen: classes to learn from (C, bool).
    """
    centre = vectors[seen].mean(0)
    x, y = vectors - centre, nu[seen]
    gram = x[seen] @ x[seen].T + RIDGE * torch.eye(int(seen.sum()), dtype=nu.dtype)
    predicted = x @ (x[seen].T @ torch.linalg.solve(gram, y - y.mean(0))) + y.mean(0)
    return torch.where(seen[:, None], nu, predicted)
