"""What a task is made of: one example, and the rules for reading and scoring it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from h2tune.errors import H2TuneError

Row = Mapping[str, Any]
Kind = Literal["generate", "choice", "classify"]


class TaskError(H2TuneError, ValueError):
    """Something about a task or its data that the user can put right; the message is one or two lines."""


class RowError(TaskError):
    """One row cannot be read. Says why; whoever reads the file adds the file, the row and its columns."""


UNNAMED = "own task"  # the name, in tables, of a task that its writer gave none


def called(name: str) -> str:
    """A task in a sentence."""
    return "the task" if name == UNNAMED else f"task {name}"


@dataclass(frozen=True)
class Example:
    """One question and its answer.

    prompt: what the model reads; for ``classify`` the text to classify.
    answer: what it should write after the prompt, with what leads to it (``" 11"``); empty for ``classify``.
    gold: what scoring compares: a number, a letter, a label or the value of a program, as text.
    options: for ``choice``, the continuations to compare by likelihood; ``answer`` is one of them.
    letters: those that the row writes before its options, in their order; empty where it writes none.
    label: for ``classify``, the index in ``Task.labels``.
    messages: when the row held a chat, its turns up to the last assistant turn; more keys than role and content stay.
    tools: what a chat says of the tools there are.
    lead: what ``answer`` begins with only because it follows a prompt.
    place: file and row that it was read from, for messages.
    form: name of the set of columns that it was read by (`Form.name`).
    asked: a digest of the question's own cells, or a chat's user turns, without the words that a task puts around them
        and without options; empty where it was not read from a row.
    offered: a digest of the texts of the options that the row itself gives, in any order; empty where it gives none.
    """

    prompt: str
    answer: str
    gold: str
    options: tuple[str, ...] = ()
    letters: str = ""
    label: int | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[Any, ...] = ()
    lead: str = " "
    place: str = field(default="", compare=False)
    form: str = field(default="", compare=False)
    asked: bytes = field(default=b"", compare=False)
    offered: bytes = field(default=b"", compare=False)


@dataclass(frozen=True)
class Form:
    """One set of columns that a task reads: how to ask, and how to add the answer to what was asked.

    prompt, answer: the texts that come of it, with columns in braces; empty where the column holds a chat.
    chosen: whether the answer is a label, an option or a letter, so that its braces name no column.
    note: what those texts cannot say.
    options: for ``choice``, the options or the text that names their column.
    more: columns of the question that ``asks`` does not name: a row may lack them, or a template names them.
    gives: columns of the answer that ``answers`` does not name, in the same way; a chat's own column.
    offers: columns of the question that hold its options.
    """

    asks: tuple[str, ...]
    answers: tuple[str, ...]
    ask: Callable[[Row], Example]
    solve: Callable[[Row, Example], Example]
    prompt: str = ""
    answer: str = ""
    chosen: bool = False
    note: str = ""
    options: str | tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    offers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its columns as text, by which a run remembers it."""
        return " -> ".join(filter(None, (", ".join(self.asks), ", ".join(self.answers))))


class Ask(Protocol):
    """One row to a question."""

    def __call__(self, row: Row, trained: Sequence[str] = ()) -> Example:
        """The question of a row; of several that it holds the one that was trained (names of forms)."""


def _every_row(row: Row) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Task:
    """How rows become examples and how answers are judged.

    read: one row to an example; raises ``RowError``.
    ask: the same without looking at the answer (``answer`` and ``gold`` stay empty), for prediction.
    forms: the sets of columns that it reads, in the order in which they are looked for.
    score: example and generated text (without the prompt) to right or wrong.
    accepts: whether a row belongs to this task; the others of a mixed file are left out.
    told_by: columns by which ``accepts`` tells.
    names: what the file calls columns, where that is not the task's name: pairs of the task's name and the file's.
    texts: columns that hold the running text which is asked about, in the order of the prompt; empty where that is not known.
    finish: a last step over all examples at once, for what is too slow row by row; None drops an example.
    """

    name: str
    kind: Kind
    max_new_tokens: int
    description: str
    read: Callable[[Row], Example]
    ask: Ask
    score: Callable[[Example, str], bool]
    labels: tuple[str, ...] = ()
    metric: str = "accuracy"
    texts: tuple[str, ...] = ()
    forms: tuple[Form, ...] = ()
    accepts: Callable[[Row], bool] = _every_row
    told_by: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    finish: Callable[[list[Example]], list[Example | None]] | None = None

    @property
    def asked_columns(self) -> tuple[str, ...]:
        """Columns that questions are read from, by the file's names."""
        return self._called(column for form in self.forms for column in form.asks + form.more)

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Columns that answers are read from, by the file's names."""
        return self._called(column for form in self.forms for column in form.answers + form.gives)

    def _called(self, columns: Iterable[str]) -> tuple[str, ...]:
        names = dict(self.names)
        return tuple(dict.fromkeys(names.get(column, column) for column in columns))

    def trained_on(self, forms: Sequence[str]) -> Task:
        """The task asking what was trained, where a row holds several questions."""
        ask = self.ask

        def asked(row: Row, trained: Sequence[str] = ()) -> Example:
            return ask(row, trained or forms)

        return replace(self, ask=asked)
