"""A mean that depends neither on the order of arrival nor on the number of clients: sums in whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_LIMBS, _LIMB_BITS = 6, 32
_MOST = 2.0**31


class CoreSum:
    """Streaming mean of the clients' cores, entry by entry over the clients that cover it.

    Sums are kept exactly, as integers in limbs of 32 bits from 2^31 down to 2^-160, below the smallest float32:
    neither the order of arrival nor the number of clients changes the result or the memory, and equal clients have
    exactly their own core as mean. Entries beyond +-2^31 count as that; weights must sum to less than 2^31.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        zeros = torch.zeros(tuple(shape), dtype=torch.int64)
        self._covering = zeros
        self._everywhere = 0  # of the clients that cover every entry: a number, not a pass over `_covering`
        self.limbs = [torch.zeros_like(zeros) for _ in range(_LIMBS)]

    def add(self, core: Tensor, coverage: Tensor, weight: int) -> None:
        """Add one client's S (any leading rank r <= R) with its coverage (booleans of the same shape).

        Args:
            weight: a whole number; n_i, or 1.
        """
        r, whole = core.shape[-1], bool(coverage.all())
        # Block by block: what a block needs stays in the processor's cache.
        blocks = range(core.shape[0]) if core.ndim > 2 else [...]
        for block in blocks:
            entries = core[block].double()
            self._add(block, entries if whole else entries.masked_fill_(~coverage[block], 0.0), weight)
        if whole and core.shape == self._covering.shape:
            self._everywhere += weight
        else:
            self._covering[..., :r, :r].add_(coverage, alpha=weight)

    def _add(self, block: Any, rest: Tensor, weight: int) -> None:
        r = rest.shape[-1]
        largest = _largest(rest)
        if not largest <= _MOST:
            largest = _largest(rest.clamp_(-_MOST, _MOST))
        for k, limb in enumerate(self.limbs):
            scale = 2.0 ** (_LIMB_BITS * k)
            if largest == 0:
                break
            if largest * scale < 1:  # entries are mostly small and have 24 bits: they lie in one or two of the limbs
                continue
            digits = (rest * scale).long()  # cut off towards 0
            limb[block][..., :r, :r].add_(digits, alpha=weight)
            rest.sub_(digits.double(), alpha=1 / scale)
            largest = _largest(rest)

    @property
    def weight(self) -> Tensor:
        """``sum w C``: how much weight covers an entry."""
        return self._covering + self._everywhere

    def mean(self, before: Tensor) -> Tensor:
        """``sum w C S / sum w C``; entries that nobody covers keep their value ``before``."""
        covering = self.weight
        weight = covering.clamp_min(1)
        mean = torch.zeros(covering.shape, dtype=torch.float64)
        for k, limb in enumerate(self.limbs):
            whole = torch.div(limb, weight, rounding_mode="trunc")
            part = (limb - whole * weight).double() / weight.double()
            mean += (whole.double() + part) * 2.0 ** (-_LIMB_BITS * k)
        return torch.where(covering > 0, mean, before.double()).to(before.dtype)


def _largest(values: Tensor) -> float:
    """The largest absolute value; 0 of none."""
    if not values.numel():
        return 0.0
    low, high = values.aminmax()
    return max(-float(low), float(high))
