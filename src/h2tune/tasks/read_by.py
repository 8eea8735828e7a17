"""By which sets of columns a client's training rows were read: what `predict` asks, and what an export tells.

Rows for prediction mostly hold no answer, and a row may hold several questions. So a run keeps which of them it has
trained on, in a file beside the adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from h2tune.tasks.example import Example

READ_BY = "read_by.json"  # the file that holds it beside an adapter


@dataclass(frozen=True)
class ReadBy:
    """One of the sets: its name (`Form.name`), whether its question was a chat, and how many rows were read by it."""

    form: str
    chat: bool
    rows: int


def read_by(examples: Iterable[Example]) -> tuple[ReadBy, ...]:
    """How examples were read; what most of them have in common comes first."""
    counts = Counter((example.form, example.messages is not None) for example in examples)
    return tuple(ReadBy(form, chat, rows) for (form, chat), rows in counts.most_common())


def read_by_from(kept: Any) -> tuple[ReadBy, ...]:
    """What was written as JSON.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    return tuple(ReadBy(str(one["form"]), bool(one["chat"]), int(one["rows"])) for one in kept)
