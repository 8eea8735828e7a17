"""``keep: auto``: the largest share of the core that a stated budget allows.

Bytes and memory are arithmetic; step time is measured by the caller, rank by rank.
"""

from __future__ import annotations

from collections.abc import Callable

# fp32 parameter, gradient and Adam's two moments.
TRAINED_BYTES, STILL_BYTES = 16, 4


def upload_bytes(pairs: int, rank: int, width: int = 4) -> int:
    """Bytes of the values of an update with so many covered (depth, slot) pairs."""
    return pairs * rank * rank * width


def adapter_bytes(trained: int, still: int) -> int:
    """Memory of an adapter's numbers (`Settings.adapter_numbers`) in training."""
    return TRAINED_BYTES * trained + STILL_BYTES * still


def kept_share(rank: int, fits: Callable[[int], bool], what: str) -> float:
    """Largest r / R, r = 1..R, for which ``fits(r)``; ``fits`` must not turn true again once false.

    Raises:
        ValueError: if not even r = 1 fits.
    """
    low, high = 0, rank
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    if low == 0:
        raise ValueError(f"the budget is too small for this model: {what}")
    return low / rank
