"""``keep: auto``: the largest share of the core that a stated budget allows.

Bytes and memory are arithmetic; step time is measured by the caller, rank by rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# fp32 parameter, gradient and Adam's two moments.
TRAINED_BYTES = 16


def parse_size(text: str) -> int:
    """Bytes of a size such as ``200KB`` or ``1.5 GiB``; raises ValueError otherwise."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is no size; write for example 200KB or 2GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


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
