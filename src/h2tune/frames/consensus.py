"""Frames: bases A, B that read and write the same latent coordinates in every client's model (Kettenring 1971, MAXVAR).

A middle matrix T only means something between two bases. Each client factorises what its blocks read (X) and write (Y)
on the anchors; the server finds, for each depth and slot, the coordinates G on which the clients agree most (MAXVAR
generalised canonical correlation); each client regresses its A and B on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from h2tune.core.least_squares import least_squares
from h2tune.errors import MethodError

HELD_OUT = 5  # every fifth row is held out where a choice or a figure is made
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
_MEAN_WEIGHT = 1e10  # of the row that holds the mean, in multiples of all others together


@dataclass(frozen=True)
class Factor:
    """Leading part of a centred X = U diag(s) V^T + 1 mean^T.

    Attributes:
        u: n x p, orthonormal columns; the only part that is sent.
        s: p singular values. v: d x p. mean: d.
    """

    u: Tensor
    s: Tensor
    v: Tensor
    mean: Tensor


def factorise(x: Tensor, p: int, seed: int = 0) -> Factor:
    """Factor of x (n x d): exact through the smaller Gram matrix, or randomised where that would be large."""
    mean = x.mean(0)
    x = x - mean
    p = min(p, *x.shape)
    if min(x.shape) <= 1024:
        u, s, v = _by_gram(x, p)
    else:
        u, s, v = _randomised(x, p, seed)
    # Directions without variance have no left vector; they are dropped, alike for everybody who has these rows.
    real = s > 1e-6 * s[0].clamp_min(1e-30)
    return Factor(u[:, real], s[real], v[:, real], mean)


def _by_gram(x: Tensor, p: int) -> tuple[Tensor, Tensor, Tensor]:
    wide = x.shape[1] > x.shape[0]
    # A Gram matrix squares the spectrum: in float32 all below 3e-4 of the largest value would be noise.
    x = x.double()
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    s = values.flip(0)[:p].clamp_min(0).sqrt()
    side = vectors.flip(1)[:, :p]
    inverse = torch.where(s > 1e-9 * s[0].clamp_min(1e-30), 1 / s.clamp_min(1e-30), 0.0)
    other = (x.T @ side if wide else x @ side) * inverse
    u, v = (side, other) if wide else (other, side)
    return u.float(), s.float(), v.float()


def _randomised(
    x: Tensor, p: int, seed: int, oversample: int = 16, iterations: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Halko, Martinsson and Tropp (arXiv 0909.4061), algorithm 4.4; an own generator, so that runs repeat."""
    generator = torch.Generator().manual_seed(seed)
    y = x @ torch.randn(x.shape[1], min(p + oversample, *x.shape), generator=generator)
    for _ in range(iterations):
        y = x @ (x.T @ torch.linalg.qr(y)[0])
    q = torch.linalg.qr(y)[0]
    u, s, vh = torch.linalg.svd(q.T @ x, full_matrices=False)
    return (q @ u)[:, :p], s[:p], vh[:p].T


def consensus(bases: Sequence[Tensor], rank: int) -> Tensor:
    """G, n x rank: the leading left singular vectors of [U_1 ... U_N], scaled to unit variance, by agreement.

    Raises:
        MethodError: if the bases hold fewer than ``rank`` directions.
    """
    stacked = torch.cat([u.double() for u in bases], dim=1)
    values, vectors = torch.linalg.eigh(stacked.T @ stacked)
    if stacked.shape[1] < rank or values[-rank] <= 1e-9:
        raise MethodError(f"The anchors span fewer than {rank} directions: use more anchors or a smaller rank.")
    g = stacked @ (vectors[:, -rank:] * values[-rank:].rsqrt()).flip(1)
    # Signs are fixed so that the same anchors give the same frames on every machine.
    g = g * torch.where(g.abs().argmax(0).eq(torch.arange(g.shape[0])[:, None]), g.sign(), 0).sum(0)
    scaled: Tensor = (g * g.shape[0] ** 0.5).float()
    return scaled


def along_depth(frames: Tensor) -> Tensor:
    """Rotate G[g + 1] onto G[g], step by step (orthogonal Procrustes); depth x n x rank."""
    turned = [frames[0]]
    for g in frames[1:]:
        left, _, right = torch.linalg.svd(g.T @ turned[-1])
        turned.append(g @ (left @ right))
    return torch.stack(turned)


def agreement(bases: Sequence[Tensor], rank: int) -> float:
    """Mean correlation between the clients' coordinates on rows that were not used to find them.

    1 means that all models see the same latent coordinates, 0 that they share nothing beyond chance.
    """
    held = torch.arange(bases[0].shape[0]) % HELD_OUT == 0
    train = [torch.linalg.qr(u[~held].double())[0].float() for u in bases]
    g = consensus(train, rank)
    scores = []
    for u in bases:
        weights = least_squares(u[~held].double(), g.double())
        z = u[held].double() @ weights
        z = z - z.mean(0)
        scores.append(z / z.norm(dim=0).clamp_min(1e-12))
    if len(scores) < 2:
        return 1.0
    pairs = [(a * b).sum(0).mean() for i, a in enumerate(scores) for b in scores[i + 1 :]]
    return float(torch.stack(pairs).mean())


def read_matrix(factor: Factor, target: Tensor) -> Tensor:
    """A, r x d_in: ridge regression X -> G with a heavily weighted row that sends the mean of X to 0.

    A is applied to raw x; a constant that it answered to could not be exported as LoRA. The ridge is chosen on
    held-out rows.
    """
    held = torch.arange(target.shape[0]) % HELD_OUT == 0
    z, spectrum = (factor.u * factor.s).double(), factor.s.double().square()
    centre = factor.v.double().T @ factor.mean.double()
    y = target.double()

    def solve(rows: Tensor, ridge: float) -> Tensor:
        hessian = z[rows].T @ z[rows] + ridge * spectrum.mean() * torch.eye(z.shape[1], dtype=z.dtype)
        free: Tensor = torch.linalg.solve(hessian, z[rows].T @ y[rows])
        # The heavy row (Sherman and Morrison). It is heavy, not infinite: a mean of rounding errors must not count.
        step: Tensor = torch.linalg.solve(hessian, centre)
        return free - torch.outer(step, centre @ free) / (centre @ step + 1 / (_MEAN_WEIGHT * len(y)))

    errors = [float((z[held] @ solve(~held, ridge) - y[held]).square().sum()) for ridge in _RIDGES]
    best = _RIDGES[errors.index(min(errors))]
    return (factor.v.double() @ solve(torch.ones_like(held), best)).T.float()


def write_matrix(factor: Factor, target: Tensor) -> Tensor:
    """B, d_out x r: least squares G -> Y, for G with orthonormal columns scaled by sqrt(n)."""
    coordinates = least_squares(target.double(), (factor.u * factor.s).double())
    return (factor.v.double() @ coordinates.T).float()
