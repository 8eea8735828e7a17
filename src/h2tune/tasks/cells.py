"""One cell of a row as text: what it may hold, and when it counts as empty."""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Real
from typing import Any

from h2tune.tasks.example import Row, RowError


def cell(row: Row, column: str) -> str:
    """The text of a column, to the character; numbers as they are written, whole ones without a point.

    Raises:
        RowError: when the column is missing, empty or blank, or holds something that is neither text nor a number.
    """
    text = optional(row, column)
    if not text:
        raise RowError(f"column {column!r} is empty" if column in row else f"no column {column!r}")
    return text


def optional(row: Row, column: str) -> str:
    """The same for a column that may be missing or empty: then an empty text.

    Raises:
        RowError: when the column holds something that is neither text nor a number.
    """
    text = plain_text(row.get(column), f"column {column!r}")
    return text if text.strip() else ""


def is_filled(row: Row, column: str) -> bool:
    """Whether a column is there and holds something: files that mix forms fill the columns of others with nothing."""
    value = row.get(column)
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        return False
    if isinstance(value, str):
        return bool(value.strip())
    return not hasattr(value, "__len__") or len(value) > 0


def trimmed(row: Row, column: str) -> str:
    """A cell without the spaces around it, for the presets, whose own prompts say where spaces go.

    Raises:
        RowError: as `cell`.
    """
    return cell(row, column).strip()


def number_text(value: Real | Decimal) -> str:
    """A number as text; booleans as JSON writes them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def plain_text(value: Any, where: str) -> str:
    """A value as text; nothing, null and NaN as an empty one.

    Raises:
        RowError: naming ``where`` if the value is neither text nor a number.
    """
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a number of NumPy
        value = value.item()
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        whole_text(value, where)
        return value
    if isinstance(value, Real | Decimal):
        return number_text(value)
    raise RowError(
        f"{where} holds {_kind(value)} ({beginning(value)}), which is neither text nor a number; give a column of text"
    )


def whole_text(text: str, where: str) -> None:
    """Refuse half a surrogate pair: such a text cannot be written as UTF-8, and no tokenizer takes it.

    Raises:
        RowError: naming the character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(
            f"{where} holds half a character (\\u{ord(text[error.start]):04x}) at position {error.start + 1},"
            " as after a cut through an emoji; remove it"
        ) from None


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple) or hasattr(value, "tolist"):
        turns = len(value) and isinstance(value[0], dict) and {"role", "from"} & value[0].keys()
        return "a list of chat turns" if turns else "a list"
    return {"dict": "an object", "bytes": "bytes"}.get(type(value).__name__, f"a {type(value).__name__}")


def beginning(value: Any, most: int = 40) -> str:
    """The first characters of a value, for messages."""
    shown = repr(value)
    return shown if len(shown) <= most else shown[:most] + "..."
