"""Numbers that any reader can take: JSON has no NaN and no infinity."""

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


def finite(value: Any) -> Any:
    """The same plain value with None for what is no `number`."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return number(value) if isinstance(value, float) else value
