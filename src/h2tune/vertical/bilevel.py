"""The two levels as one optimisation problem, small enough to measure how fast it converges.

Upper level: an encoder W and the loss of labelled rows, scored by class means. Lower level, given W: the class means of
all rows under soft weights, with a ridge to fixed anchors, so that the lower problem is strongly convex and has a closed
form. With soft weights both levels are smooth, and stochastic gradient steps of size ~ 1 / sqrt(T) bring the mean
squared gradient down as O(1 / sqrt(T)) (Chen et al., NeurIPS 2021). With Adam or a hard choice of rows nothing is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from h2tune.vertical.prototypes import RIDGE, tied_means

TEMPERATURE = 1.0


@dataclass(frozen=True)
class Planted:
    """Gaussian classes: labelled rows (upper level) and unlabelled rows (lower level).

    Attributes:
        x, y: labelled rows (n x m) and classes (n).
        free: unlabelled rows (N x m).
        anchors: what the class means are tied to (C x d).
    """

    x: Tensor
    y: Tensor
    free: Tensor
    anchors: Tensor


def planted(seed: int, classes: int = 3, rows: int = 240, free: int = 600, width: int = 6, dim: int = 4) -> Planted:
    """A problem of overlapping Gaussian classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(classes, (n,), generator=generator)
        return centres[labels] + 0.8 * torch.randn(n, width, generator=generator), labels

    (x, y), (unlabelled, _) = draw(rows), draw(free)
    return Planted(x, y, unlabelled, F.normalize(torch.randn(classes, dim, generator=generator), dim=1))


def lower(weights: Tensor, problem: Planted) -> Tensor:
    """The lower level's solution at an encoder: class means of soft-assigned rows, with a ridge to the anchors (C x d)."""
    z = torch.tanh(problem.free @ weights)
    # Rows are assigned by the anchors, so that the means are the minimiser of weighted squared distances.
    q = (z @ problem.anchors.T / TEMPERATURE).softmax(1) / len(z)
    return tied_means(z, q, problem.anchors, RIDGE / len(problem.anchors))


def upper(weights: Tensor, means: Tensor, problem: Planted, rows: Tensor) -> Tensor:
    """The upper level's loss at an encoder and class means."""
    z = torch.tanh(problem.x[rows] @ weights)
    return F.cross_entropy(4 * z @ means.T, problem.y[rows])


def gradient(weights: Tensor, problem: Planted, rows: Tensor, exact: bool) -> Tensor:
    """Gradient of the upper loss; ``exact`` also through the means, else they are held fixed."""
    w = weights.detach().requires_grad_()
    means = lower(w, problem)
    value = upper(w, means if exact else means.detach(), problem, rows)
    (found,) = torch.autograd.grad(value, w)
    return found


def mean_squared_gradient(
    problem: Planted, steps: int, exact: bool, size: float = 3.0, batch: int = 32, seed: int = 0
) -> float:
    """Mean of the squared norm of the full exact gradient over a run of stochastic steps of size ``size / sqrt(steps)``."""
    generator = torch.Generator().manual_seed(seed)
    weights = 0.3 * torch.randn(problem.x.shape[1], problem.anchors.shape[1], generator=generator)
    rows = torch.arange(len(problem.y))
    total = 0.0
    for _ in range(steps):
        total += float(gradient(weights, problem, rows, True).square().sum())
        some = torch.randint(len(rows), (batch,), generator=generator)
        weights = weights - size / steps**0.5 * gradient(weights, problem, some, exact)
    return total / steps
