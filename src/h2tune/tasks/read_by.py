"""By which sets of columns a client's training rows were read: what `predict` asks, and what an export tells.

Rows for prediction mostly hold no answer, and a row may hold several questions. So a run keeps which of them it has
trained on, in a file beside the adapter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from h2tune.tasks.example import Example, Task

_FIELD = re.compile(r"\{[^{}]*\}")
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


def read_otherwise(task: Task, train: Sequence[Example], test: Sequence[Example]) -> str | None:
    """That test rows ask in another way than training rows do, in words; None if they do not.

    Columns of other names that come to the same prompt are no other way.
    """
    prompts = {form.name: _FIELD.sub("{}", form.prompt) for form in task.forms}
    known = read_by(train)
    ways = [(prompts.get(one.form, one.form), one.chat) for one in known]
    odd = [one for one in read_by(test) if (prompts.get(one.form, one.form), one.chat) not in ways]
    if not known or not odd:
        return None
    return (
        f"{sum(one.rows for one in odd)} of {len(test)} test rows are read by {_in_words(odd[0])}, training rows by"
        f" {' and '.join(map(_in_words, known))}: the model is asked otherwise than it is trained"
    )


def _in_words(one: ReadBy) -> str:
    return f"({one.form or 'the prompt'}{', as a chat' if one.chat else ''})"


def read_by_from(kept: Any) -> tuple[ReadBy, ...]:
    """What was written as JSON.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    return tuple(ReadBy(str(one["form"]), bool(one["chat"]), int(one["rows"])) for one in kept)
