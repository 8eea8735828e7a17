"""Co-LoRA's alignment of two models at anchor blocks, and its weights of relevance (arXiv 2506.11024)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from h2tune.core.least_squares import least_squares
from h2tune.declared import ModelShape
from h2tune.frames.consensus import Factor


def anchor_blocks(depth: int, count: int) -> list[int]:
    """``floor(L / K) - 1, 2 floor(L / K) - 1, ..., L - 1``: the last one is the last block."""
    step = depth // count
    return [step * k - 1 for k in range(1, count)] + [depth - 1]


def guide_bytes(pivot: ModelShape, blocks: int, most: int, sentences: int | None) -> int:
    """Of what A reads (half), the whitened outputs (half) and B (single) of every slot of the pivot's anchor blocks.

    Args:
        most: directions kept of an output. sentences: anchors that models are aligned on; None is all.
    """
    lengths = pivot.anchor_lengths
    rows = sum(lengths[:: -(-len(lengths) // sentences)] if sentences and lengths else lengths)
    wide = [min(most, size) for size in pivot.parts]
    return blocks * sum(2 * rows * (pivot.rank + p) + 4 * p * pivot.rank for p in wide)


def guide_fault(sent: Mapping[str, Tensor], places: Collection[str], rank: int) -> str:
    """What is wrong with a guide that a client sent; empty if nothing is.

    Args:
        places: the anchor blocks' slots, ``0.q`` and so on.
    """
    wanted = {f"{kind}.{place}" for kind in ("read", "rows", "write") for place in places}
    if sent.keys() != wanted or any(t.ndim != 2 or not t.is_floating_point() for t in sent.values()):
        return "its guide holds other tensors than it may"
    for place in places:
        read, rows, write = (sent[f"{kind}.{place}"] for kind in ("read", "rows", "write"))
        if read.shape != (len(rows), rank) or write.shape != (rows.shape[1], rank):
            return f"its guide has tensors of other shapes at {place}"
    return ""


def align_reader(x: Factor, target: Tensor, steps: int = 300) -> Tensor:
    """A' (R x d), row-orthonormal: MSE to the pivot's readings plus 0.5 x orthogonality, then the polar factor."""
    z, target = (x.u * x.s).double(), target.double()
    # The rows enter by their second moments only: a step costs the same for a hundred sentences and for thousands.
    gram, cross, scale = z.T @ z, z.T @ target, target.square().sum().clamp_min(1e-12)
    a = least_squares(z, target).T.clone().requires_grad_(True)
    eye = torch.eye(len(a), dtype=a.dtype)
    solver = torch.optim.Adam([a], lr=0.02)
    for _ in range(steps):
        squares = ((a @ gram) * a).sum() - 2 * (a * cross.T).sum() + scale  # ||Z A^T - target||^2
        loss = squares / scale + 0.5 * (a @ a.T - eye).square().sum()
        solver.zero_grad()
        loss.backward()
        solver.step()
    u, _, vh = torch.linalg.svd(a.detach(), full_matrices=False)
    polar: Tensor = u @ vh
    return (polar @ x.v.double().T).float()


def whitened(y: Factor, gamma: float) -> tuple[Tensor, Tensor]:
    """Rows of Y in coordinates of unit variance (n x p), and the standard deviations sqrt(s^2 / n + gamma)."""
    deviation = (y.s.double().square() / len(y.u) + gamma).sqrt()
    return y.u.double() * (y.s.double() / deviation), deviation


def align_writer(y: Factor, pivot_rows: Tensor, pivot_writer: Tensor, gamma: float) -> Tensor:
    """B' (d x R): the pivot's whitened B, turned by the CCA of both models' outputs, and coloured again.

    Args:
        pivot_rows: the pivot's whitened outputs, n x p. pivot_writer: ``S11^(-1/2) B`` in the same coordinates, p x R.
    """
    rows, deviation = whitened(y, gamma)
    u, _, vh = torch.linalg.svd(pivot_rows.double().T @ rows / len(rows), full_matrices=False)
    turned: Tensor = vh.T @ (u.T @ pivot_writer.double())
    return (y.v.double() @ (deviation[:, None] * turned)).float()


def relevance(sketches: Tensor, temperature: float) -> Tensor:
    """``softmax_i(cos(g_k, g_i) / temperature)``, clients x clients."""
    unit = sketches.double() / sketches.double().norm(dim=1, keepdim=True).clamp_min(1e-30)
    return torch.softmax(unit @ unit.T / temperature, dim=1)
