"""Small pieces that turn the cells of a row into text: columns, templates, options, chats."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from h2tune.tasks.example import Example, Row, RowError

LETTERS = "ABCDEFGHIJ"
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


def fold(text: str) -> str:
    """Text without differences of case and spacing."""
    return " ".join(text.casefold().split())


def cell(row: Row, column: str) -> str:
    """The text of a column; ``RowError`` when the column is not there or holds nothing."""
    if column not in row:
        raise RowError(f"no column {column!r}")
    value = row[column]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if missing or not str(value).strip():
        raise RowError(f"column {column!r} is empty")
    return str(value).strip()


def fields(template: str) -> list[str]:
    """The columns that a template names."""
    return [match[1] for match in _FIELD.finditer(template) if match[1]]


def fill(template: str, row: Row) -> str:
    """``{column}`` replaced by that cell (any column name, spaces too); ``{{`` and ``}}`` are literal braces."""
    return _FIELD.sub(lambda match: cell(row, match[1]) if match[1] else match[0][0], template)


def spaced(answer: str) -> str:
    """An answer as it follows a prompt: one leading space, nothing at the end."""
    return " " + answer.strip()


def split_options(value: Any) -> list[str]:
    """Options without their letters, from a list (``A)5``), or a line (``a ) 24 , b ) 120`` or ``(A) 24 (B) 120``)."""
    if isinstance(value, str):
        value = _listed(value) or _split_line(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, Sequence) or len(value) < 2:
        raise RowError(f"options should be a list of two or more, not {str(value)[:60]!r}")
    return [re.sub(r"^\(?([A-Ja-j])\s*\)\s*", "", str(option).strip()).strip() for option in value]


def _listed(text: str) -> list[str] | None:
    """A list that was written as text, as in some rows of MathQA."""
    try:
        value = ast.literal_eval(text) if text.startswith("[") else None
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, list) else None


def _split_line(line: str) -> list[str]:
    # Letters are looked for in their order, so that an "a )" inside an option starts no new one.
    starts: list[tuple[int, int]] = []
    position = 0
    for letter in LETTERS:
        marker = re.compile(rf"(?:^|,)\s*{letter}\s*\)|\({letter}\s*\)", re.IGNORECASE).search(line, position)
        if marker is None:
            break
        position = marker.end()
        starts.append(marker.span())
    ends = [start for start, _ in starts[1:]] + [len(line)]
    return [line[begin:end].strip().rstrip(", ") for (_, begin), end in zip(starts, ends, strict=False)]


def chat(row: Row, *, answered: bool) -> Example:
    """The example of a ``messages`` column: the last assistant turn is the answer, what is before it the prompt."""
    turns = _turns(row.get("messages"))
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if answered and last is None:
        raise RowError("column 'messages' has no assistant turn to learn from")
    if not answered:
        last = len(turns) - 1 if turns[-1]["role"] == "assistant" else len(turns)
    before = turns[:last]
    if not before:
        raise RowError("column 'messages' has nothing before its last assistant turn")
    prompt = "".join(f"{turn['role']}: {turn['content'].strip()}\n" for turn in before) + "assistant:"
    answer = spaced(turns[last]["content"]) if answered and last is not None else ""
    if answered and not answer.strip():
        raise RowError("column 'messages': the last assistant turn is empty")
    return Example(prompt, answer, answer.strip(), messages=tuple(before))


def _turns(value: Any) -> list[dict[str, str]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = None
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list) or not value:
        raise RowError("column 'messages' is not a list of {role, content}")
    for turn in value:
        if (
            not isinstance(turn, dict)
            or not isinstance(turn.get("role"), str)
            or not isinstance(turn.get("content"), str)
        ):
            raise RowError("column 'messages' needs a role and a content, both text, in every turn")
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


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


def chat_form(solve: Callable[[str, Example], Example]) -> Form:
    """The form of a ``messages`` column; ``solve`` gets the text of the last assistant turn."""

    def add(row: Row, example: Example) -> Example:
        answer = chat(row, answered=True)
        # The turn is kept as it was written: a chat model answers in its own words.
        return replace(
            solve(answer.gold, example), answer=answer.answer, prompt=answer.prompt, messages=answer.messages
        )

    return Form(("messages",), (), lambda row: chat(row, answered=False), add)
