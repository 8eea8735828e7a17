"""What an adapter of low rank adds to a map, with its products laid out as a CPU makes them fast.

    y + (x A^T) B^T        x: tokens x d_in, A: r x d_in, B: d_out x r; r is a handful

The same product takes MKL two to four times as long with r columns (tokens x d times d x r) as with r rows (r x d times
d x tokens), and automatic differentiation of the formula above has two of the slow kind. So A x^T is made, the gradients are
written out, and the sum is made where y lies. Batched factors (adapters x r x d_in) with rows of their own work alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def plus_low_rank(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``y + x A^T B^T``; y may be overwritten. On a CPU it has no second derivatives.

    Args:
        y: ... x d_out, what a map has just answered to x, ... x d_in.
        a, b: r x d_in and d_out x r, or n of them stacked: then the rows of x are those of n adapters, as many of each.
    """
    on_cpu = y.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    if on_cpu and y.dtype is x.dtype is a.dtype is b.dtype and y.is_contiguous():
        # Only what is nobody's part, and no parameter, may be overwritten.
        own = y.clone() if y._is_view() or y.is_inference() or (y.is_leaf and y.requires_grad) else y
        return _PlusLowRank.apply(own, x, a, b)  # type: ignore[no-any-return, no-untyped-call]
    return y + (_rows(x, a) @ a.mT @ b.mT).view(y.shape)


def _rows(x: Tensor, a: Tensor) -> Tensor:
    """The rows of x in one matrix, or in one for each adapter."""
    return x.reshape(*a.shape[:-2], -1, x.shape[-1])


class _PlusLowRank(torch.autograd.Function):
    """The products and their gradients; every narrow matrix lies on its side."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        rows, sums = _rows(x, a), _rows(y, a)
        h = a @ rows.mT  # r x tokens
        (sums.addmm_ if a.dim() == 2 else sums.baddbmm_)(h.mT, b.mT)
        _, _, learns_a, learns_b = ctx.needs_input_grad
        ctx.save_for_backward(rows if learns_a else None, a, b, h if learns_b else None)
        ctx.shape = x.shape
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, a, b, h = ctx.saved_tensors
        g = _rows(gradients[0], a)
        of_h = b.mT @ g.mT  # r x tokens
        return (
            gradients[0],
            (of_h.mT @ a).view(ctx.shape) if ctx.needs_input_grad[1] else None,
            of_h @ rows if rows is not None else None,
            (h @ g).mT if h is not None else None,
        )
