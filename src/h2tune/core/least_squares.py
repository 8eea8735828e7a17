"""Least squares with the same bits every time."""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares(a: Tensor, b: Tensor) -> Tensor:
    """The X of least norm among those that minimise ``||A X - B||``.

    PyTorch's default on a CPU, LAPACK's ``gelsy``, takes the column order that it starts from out of memory that nobody
    has set: the same A and B give results that differ in their last bits. ``gelsd`` solves by singular values.

    Args:
        a: m x n, of any rank. b: m x k.

    Returns:
        n x k, on the device of ``a``.
    """
    solution: Tensor = torch.linalg.lstsq(a.cpu(), b.cpu(), driver="gelsd").solution
    return solution.to(a.device)
