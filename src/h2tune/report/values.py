"""Values of a file that may hold anything: what is not as it should be becomes empty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(value: Any) -> float | None:
    """A finite number of sane size, or None for everything else (beyond 1e100 even differences overflow)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) and abs(value) < 1e100 else None
    except OverflowError:
        return None


def whole(value: Any) -> int | None:
    """A whole number, or None for everything else."""
    read = number(value)
    return None if read is None else int(read)


def text(value: Any) -> str:
    return "" if value is None else str(value)


def texts(value: Any) -> tuple[str, ...]:
    return tuple(str(entry) for entry in list_of(value))


def list_of(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
