"""``keep: auto``: the largest share of the core that a stated budget allows.

Bytes and memory are arithmetic; step time is measured by the caller, rank by rank.
"""

from __future__ import annotations

from collections.abc import Callable

# fp32 parameter, gradient and Adam's two moments.
TRAINED_BYTES = 16


def upload_bytes(pairs: int, rank: int, width: int = 4) -> int:
    """Bytes of the values of an update with so many covered (depth, slot) pairs."""
    return pairs * rank * rank * width


def adapter_bytes(maps: list[tuple[int, int, int]], rank: int) -> int:
    """Memory to train A, B and T of maps given as (d_in, d_out, parts)."""
    return TRAINED_BYTES * sum(rank * (d_in + d_out + parts * rank) for d_in, d_out, parts in maps)


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
