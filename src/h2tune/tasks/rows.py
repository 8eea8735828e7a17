"""Small pieces that turn a row into an example: templates, options, and the sets of columns that a task reads."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from h2tune.tasks.cells import cell, plain_text
from h2tune.tasks.chats import COLUMNS, ask_chat, solve_chat
from h2tune.tasks.example import Example, Row, RowError

LETTERS = "ABCDEFGHIJ"
TOO_MANY = f"more than {len(LETTERS)} options; their letters go from {LETTERS[0]} to {LETTERS[-1]}"
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


def composed(text: str) -> str:
    """Text in Unicode's normal form C: an accent typed as its own character is the same letter."""
    return unicodedata.normalize("NFC", text)


def fold(text: str) -> str:
    """Text without differences of case, spacing and how accents are typed."""
    return " ".join(composed(text).casefold().split())


def fields(template: str) -> list[str]:
    """The columns that a template names."""
    return [match[1] for match in _FIELD.finditer(template) if match[1]]


def whole_field(template: str) -> str | None:
    """The column of a template that is nothing but one column: ``"{text}"``."""
    match = _FIELD.fullmatch(template)
    return match[1] if match else None


def fill(template: str, row: Row) -> str:
    """``{column}`` replaced by that cell to the character (any column name, spaces too).

    ``{{`` and ``}}`` are literal braces.

    Raises:
        RowError: naming the column that is missing, empty or neither text nor a number.
    """
    return _FIELD.sub(lambda match: cell(row, match[1]) if match[1] else match[0][0], template)


def spaced(answer: str) -> str:
    """An answer as it follows a preset's prompt: one leading space, nothing at the end."""
    return " " + answer.strip()


def split_options(value: Any) -> list[str]:
    """Options without their letters, from a list (``A)5``), or a line (``a ) 24 , b ) 120`` or ``(A) 24 (B) 120``)."""
    given = value
    if isinstance(value, str):
        value = _listed(value) or _split_line(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, Sequence) or len(value) < 2:
        raise RowError(f"options should be a list of two or more, not {str(given)[:60]!r}")
    found = [
        re.sub(r"^\(?([A-Ja-j])\s*\)\s*", "", plain_text(option, "an option").strip()).strip() for option in value
    ]
    if "" in found:
        raise RowError(f"option {found.index('') + 1} of {len(found)} is empty")
    return found


def _listed(text: str) -> list[str] | None:
    """A list that was written as text: as JSON, or as Python writes it, as in some rows of MathQA."""
    if not text.lstrip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list) else None
    return None


def _split_line(line: str) -> list[str]:
    # Letters are looked for in their order, so that an "a )" inside an option starts no new one.
    starts: list[tuple[int, int]] = []
    position = 0
    for letter in f"{LETTERS}K":
        marker = re.compile(rf"(?:^|,)\s*{letter}\s*\)|\({letter}\s*\)", re.IGNORECASE).search(line, position)
        if marker is None:
            break
        if len(starts) == len(LETTERS):
            raise RowError(TOO_MANY)
        position = marker.end()
        starts.append(marker.span())
    ends = [start for start, _ in starts[1:]] + [len(line)]
    return [line[begin:end].strip().rstrip(", ") for (_, begin), end in zip(starts, ends, strict=False)]


@dataclass(frozen=True)
class Form:
    """One set of columns that a task reads: how to ask, and how to add the answer to what was asked."""

    asks: tuple[str, ...]
    answers: tuple[str, ...]
    ask: Callable[[Row], Example]
    solve: Callable[[Row, Example], Example]


def asker(forms: Sequence[Form], *, answered: bool) -> Callable[[Row], Example]:
    """A reader that takes the first form whose columns are all in the row."""

    def read(row: Row) -> Example:
        for form in forms:
            if all(column in row for column in form.asks + (form.answers if answered else ())):
                example = form.ask(row)
                return form.solve(row, example) if answered else example
        sets = [", ".join(form.asks + (form.answers if answered else ())) for form in forms]
        raise RowError(f"needs the columns {' or '.join(f'({names})' for names in sets)}")

    return read


def chat_forms(solve: Callable[[str, Example], Example]) -> tuple[Form, ...]:
    """The forms of columns that hold a chat; ``solve`` gets the text of the last assistant turn."""

    def form(column: str) -> Form:
        return Form(
            (column,), (), partial(ask_chat, column=column), lambda row, e: solve_chat(row, (column,), solve, e)
        )

    return tuple(form(column) for column in COLUMNS)
