"""Public questions: the same for everybody, in an order that follows from the questions alone.

A question's number is the rank of the SHA-256 of its prompt, so that participants who hold the same questions in files of
different order agree on it. The digest says whether they do hold the same.
"""

from __future__ import annotations

import hashlib
import random
import unicodedata
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from h2tune.config import PublicQuestions
from h2tune.tasks.cells import is_filled
from h2tune.tasks.chats import is_chat, read_turns
from h2tune.tasks.custom import build_task, with_columns
from h2tune.tasks.dataset import load_examples
from h2tune.tasks.example import Example, Row, RowError, Task, TaskError, called
from h2tune.tasks.sources import read_rows
from h2tune.utils.seeds import derive

_USUAL = ("answer", "Answer", "output", "gold", "correct", "value")

__all__ = ["Questions", "load_questions", "question_key"]


@dataclass(frozen=True)
class Questions:
    """Public questions in the order of their numbers.

    Attributes:
        task: how they are asked and judged.
        examples: ``answer`` is the reference answer with its rationale, if there is one; ``gold`` the right answer. Both
            are empty where the source has none.
        digest: the same for the same questions, answers and task.
    """

    task: Task
    examples: tuple[Example, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def answered(self) -> bool:
        """Whether the questions come with right answers."""
        return bool(self.examples[0].gold)

    def slice(self, round: int, size: int, seed: int) -> list[int]:
        """Numbers of a round's questions, from 1 on; none comes again before all have come.

        The slices of one pass through all questions are equally large, up to one, and at most ``size``.
        """
        parts = -(-len(self) // size)
        turn, part = divmod(round - 1, parts)
        order = list(range(len(self)))
        random.Random(derive(seed, "public", turn)).shuffle(order)
        return sorted(order[len(self) * part // parts : len(self) * (part + 1) // parts])


def question_key(prompt: str) -> str:
    """What the order of questions goes by."""
    return hashlib.sha256(unicodedata.normalize("NFC", prompt).encode()).hexdigest()


def load_questions(config: PublicQuestions) -> Questions:
    """Read public questions, each once, and ``limit`` takes the first numbers.

    Raises:
        TaskError: the source cannot be read, the task generates nothing, only some rows have answers, or a question has two.
    """
    try:
        task = build_task(config.task)
    except TaskError as error:
        raise TaskError(f"public.task: {error}") from None
    if task.kind != "generate":
        raise TaskError(
            f"public.task: {called(task.name)} is of kind {task.kind}; reasoning paths are written, so the task of public"
            " questions must be of kind generate"
        )
    try:
        examples = _read(config, task)
    except TaskError as error:
        raise TaskError(f"public.source: {error}") from None
    first = _one_each(examples)
    keys = sorted(first)[: config.limit]
    digest = hashlib.sha256(f"{task.name}/{task.max_new_tokens}".encode())
    for key in keys:
        digest.update(f"{key}\0{first[key].answer}\0{first[key].gold}\0".encode())
    return Questions(task, tuple(first[key] for key in keys), digest.hexdigest()[:32])


def _one_each(examples: list[Example]) -> dict[str, Example]:
    """An example for each question. Of several reasons for one answer it is the first by the alphabet, whatever the order of rows.

    Raises:
        TaskError: a question has two answers.
    """
    found: dict[str, Example] = {}
    for example in examples:
        other = found.setdefault(question_key(example.prompt), example)
        if other.gold != example.gold:
            raise TaskError(
                f"{example.place}: the same question as in {other.place}, with another answer ({other.gold[:40]!r} there,"
                f" {example.gold[:40]!r} here)"
            )
        if example.answer < other.answer:
            found[question_key(example.prompt)] = example
    if again := len(examples) - len(found):
        warnings.warn(
            f"public: {again} of {len(examples)} rows repeat a question; each question counts once", stacklevel=3
        )
    return {key: replace(example, place="") for key, example in found.items()}


def _read(config: PublicQuestions, task: Task) -> list[Example]:
    try:
        return load_examples(config.source, task, columns=config.columns)
    except TaskError as error:
        return _without_answers(config, task, error)


def _without_answers(config: PublicQuestions, task: Task, error: TaskError) -> list[Example]:
    """The questions alone, if none of the rows has an answer; else the mistake that was found stands.

    Raises:
        TaskError: a row has an answer, which then is what cannot be read.
    """
    asked = load_examples(config.source, task, columns=config.columns, answered=False)
    named = with_columns(task, config.columns)
    # Where the task reads other columns than these, their cells are answers all the same.
    usual = [name for name in _USUAL if name not in named.asked_columns]
    rows = [row for row in read_rows(config.source) if named.accepts(row)]
    hidden = {name for name in named.answer_columns if _is_hidden(named, rows, name)}
    alone = {*_own_answers(named), *usual}
    if any(_is_answer(row, name, alone) for row in rows for name in {*named.answer_columns, *usual} - hidden):
        raise error
    _warn_of_others(named, rows)
    return asked


def _own_answers(task: Task) -> frozenset[str]:
    """Columns of the answer that are none of the question, as a hint is that stands in both; all where there is no other."""
    return frozenset(task.answer_columns).difference(task.asked_columns) or frozenset(task.answer_columns)


def _is_hidden(task: Task, rows: Sequence[Row], column: str) -> bool:
    """Whether a column of labels holds -1 throughout, as GLUE's test sets do, and the task knows no such label."""
    if not rows or not task.labels or any(str(row.get(column)) not in ("-1", "-1.0") for row in rows):
        return False
    try:
        task.read(rows[0])
    except RowError:
        return True
    return False


def _is_answer(row: Row, column: str, alone: Collection[str]) -> bool:
    """Whether a cell holds an answer: one of a column of answers ``alone`` that is filled, or a chat that its assistant ends."""
    if not is_chat(row.get(column)):
        return column in alone and is_filled(row, column)
    return bool(read_turns(row[column], column)[-1]["role"] == "assistant")


def _warn_of_others(task: Task, rows: Sequence[Row]) -> None:
    """Answers may stand in a column that the task does not know."""
    known = {*task.asked_columns, *task.answer_columns}
    others = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in known]
    if others:
        warnings.warn(
            f"public: no row has an answer where the task reads it ({', '.join(task.answer_columns)}); other columns there:"
            f" {', '.join(others[:12])}. If answers stand in one of them, say so in public.columns",
            stacklevel=4,
        )
