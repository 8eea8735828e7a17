"""Values of a file that may hold anything: what is not as it should be becomes empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from h2tune.utils.numbers import number


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


def matrix(value: Any) -> tuple[tuple[float | None, ...], ...] | None:
    """Rows of one length, filled up with None; None where there is no number's place at all."""
    rows = [[number(cell) for cell in row] for row in list_of(value) if isinstance(row, list)]
    width = max((len(row) for row in rows), default=0)
    return tuple(tuple(row + [None] * (width - len(row))) for row in rows) if width else None
