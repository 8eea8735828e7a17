"""Small pieces that turn a row into an example: templates, and the sets of columns that a task reads."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from h2tune.tasks.cells import cell, is_filled, optional
from h2tune.tasks.chats import COLUMNS, ask_chat, solve_chat
from h2tune.tasks.example import Ask, Example, Form, Row, RowError
from h2tune.tasks.options import without_letter

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


def renamed_fields(template: str, columns: Mapping[str, str]) -> str:
    """A template that names other columns."""
    return _FIELD.sub(lambda m: f"{{{columns.get(m[1], m[1])}}}" if m[1] else m[0], template)


def spaced(answer: str) -> str:
    """An answer as it follows a preset's prompt: one leading space, nothing at the end."""
    return " " + answer.strip()


class SeveralQuestionsError(RowError):
    """A row holds several questions, and nothing says which of them is meant."""


def reader(forms: Sequence[Form]) -> Callable[[Row], Example]:
    """Reads a row by the first form whose cells are all filled; where none is, the first whose columns are there says why."""

    def read(row: Row) -> Example:
        for form in _whole(forms, row, lambda form: form.asks + form.answers):
            return _known(form, row, form.solve(row, form.ask(row)))
        raise _lacking(form.asks + form.answers for form in forms)

    return read


def asker(forms: Sequence[Form]) -> Ask:
    """Asks the question that `reader` would find beside the row's answer: rows for prediction mostly lack it."""

    def ask(row: Row, trained: Sequence[str] = ()) -> Example:
        there = _whole(forms, row, lambda form: form.asks)
        if not there:
            raise _lacking(form.asks for form in forms)
        there = [form for form in there if form.name in trained] or there
        form = _decided(there, row)
        return _known(form, row, form.ask(row))

    return ask


def question_key(text: str) -> bytes:
    """A question without differences of case, spacing and how accents are typed, in 16 bytes."""
    return hashlib.blake2b(fold(text).encode(), digest_size=16).digest()


def options_key(texts: Sequence[str]) -> bytes:
    """Options without their letters and their order, in the same way."""
    return question_key(" | ".join(sorted(fold(without_letter(text)) for text in texts)))


def _known(form: Form, row: Row, example: Example) -> Example:
    """The example with how it was read, and what it asks whatever the words around it."""
    if example.messages is not None:
        texts = [str(turn.get("content") or "") for turn in example.messages if turn["role"] == "user"]
    else:
        read = (*form.asks, *form.more)
        ordered = dict.fromkeys(
            [name for name in fields(form.prompt) if name in read] + [*read]
        )  # as the prompt has them
        texts = [text for name in ordered if name not in form.offers and (text := optional(row, name))]
    offered = example.offered
    if form.offers and not offered:
        offered = options_key([option.removeprefix(example.lead) for option in example.options])
    return replace(example, form=form.name, asked=question_key(" ".join(texts)) if texts else b"", offered=offered)


def _whole(forms: Sequence[Form], row: Row, columns: Callable[[Form], Sequence[str]]) -> list[Form]:
    """The forms whose columns are filled in a row; where there are none, those whose columns it has at least."""
    filled = [form for form in forms if all(is_filled(row, column) for column in columns(form))]
    return filled or [form for form in forms if all(column in row for column in columns(form))]


def _decided(there: Sequence[Form], row: Row) -> Form:
    first = there[0]
    complete = _whole(there, row, lambda form: form.answers)
    # A chat holds its own answer, so it tells nothing of the columns that are looked for before it.
    if complete and (complete[0] is first or complete[0].answers):
        return complete[0]
    asks = list(dict.fromkeys(form.asks for form in there))
    if len(asks) > 1:
        sets = " or ".join(f"({', '.join(names)})" for names in asks)
        raise SeveralQuestionsError(
            f"the question may be {sets}, and no column of answers says which; leave out the columns that are not asked"
        )
    return first


def _lacking(sets: Iterable[Sequence[str]]) -> RowError:
    shown = " or ".join(f"({', '.join(names)})" for names in sets)
    return RowError(f"needs the columns {shown}")


def chat_forms(solve: Callable[[str, Example], Example]) -> tuple[Form, ...]:
    """The forms of columns that hold a chat; ``solve`` gets the text of the last assistant turn."""

    def form(column: str) -> Form:
        return Form(
            (column,), (), partial(ask_chat, column=column), lambda row, e: solve_chat(row, (column,), solve, e),
            gives=(column,),
        )  # fmt: skip

    return tuple(form(column) for column in COLUMNS)
