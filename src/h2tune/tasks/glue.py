"""Sentence and sentence-pair classification: SST-2, QQP, QNLI and MRPC, by a private head or in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from h2tune.tasks.example import Example, Kind, Row, RowError, Task
from h2tune.tasks.rows import Form, asker, cell, fold
from h2tune.tasks.scoring import score_choice, score_label


@dataclass(frozen=True)
class _Glue:
    """One data set. Labels are in the order of their numbers in GLUE; ``words`` say the same in plain words."""

    description: str
    prompt: str
    labels: tuple[str, ...]
    words: tuple[str, ...]
    columns: tuple[tuple[tuple[str, ...], str], ...]
    instruction: re.Pattern[str]


_PAIR = "First: {}\nSecond: {}\nSame:"
_QUESTIONS = re.compile(r"Question1: (.*)\nQuestion2: (.*)", re.DOTALL)
GLUE = {
    "sst2": _Glue(
        "sentiment of a sentence from a film review", "Review: {}\nVerdict:", ("negative", "positive"),
        ("negative", "positive"), ((("sentence",), "label"),), re.compile(r"\nReview: (.*)", re.DOTALL),
    ),
    "qqp": _Glue(
        "whether two questions ask the same", _PAIR, ("not_duplicate", "duplicate"), ("no", "yes"),
        ((("question1", "question2"), "is_duplicate"), (("question1", "question2"), "label")), _QUESTIONS,
    ),
    "qnli": _Glue(
        "whether a sentence answers a question", "Question: {}\nSentence: {}\nAnswered:",
        ("entailment", "not_entailment"), ("yes", "no"), ((("question", "sentence"), "label"),),
        re.compile(r"\nQuestion: (.*)\nSentence: (.*)", re.DOTALL),
    ),
    "mrpc": _Glue(
        "whether two sentences say the same", _PAIR, ("not_equivalent", "equivalent"), ("no", "yes"),
        ((("#1 String", "#2 String"), "Quality"), (("sentence1", "sentence2"), "label")), _QUESTIONS,
    ),
}  # fmt: skip


def label_finder(name: str, labels: tuple[str, ...], also: tuple[tuple[str, int], ...] = ()) -> Callable[[str], int]:
    """Index of a label as files write it: its name or one of ``also``, whatever its case."""
    known = {fold(label): index for index, label in enumerate(labels)}
    known.update({fold(value): index for value, index in also if fold(value) not in known})

    def find(value: str) -> int:
        if fold(value) not in known:
            others = [written for written in known if written not in map(fold, labels)]
            shown = ", ".join(labels) + (f" (also written {', '.join(others)})" if others else "")
            raise RowError(f"label {value!r} is not known to task {name}, which knows {shown}")
        return known[fold(value)]

    return find


def solve_label(kind: Kind, index: int, example: Example, labels: tuple[str, ...]) -> Example:
    """The example with its label: as an index for a private head, else as a word to write."""
    if kind == "classify":
        return replace(example, label=index, gold=labels[index])
    return replace(example, answer=f" {labels[index]}", gold=labels[index])


def label_scorer(kind: Kind, labels: tuple[str, ...]) -> Callable[[Example, str], bool]:
    """For a private head the text is the predicted label; else it begins with the label."""
    if kind == "classify":
        return lambda example, text: fold(text) == fold(example.gold)
    return score_choice if kind == "choice" else score_label(labels)


def glue_task(name: str, kind: Kind) -> Task:
    """One of the GLUE tasks as ``classify`` (private head), ``generate`` or ``choice`` (over the words)."""
    glue = GLUE[name]
    shown = glue.labels if kind == "classify" else glue.words
    numbers = tuple((str(index), index) for index in range(len(shown)))
    words = tuple((word, index) for index, word in enumerate(glue.words))
    names = tuple((label, index) for index, label in enumerate(glue.labels))
    find = label_finder(name, shown, numbers + words + names)
    options = tuple(f" {word}" for word in shown) if kind == "choice" else ()

    def form(texts: tuple[str, ...], label: str) -> Form:
        def ask(row: Row) -> Example:
            return Example(glue.prompt.format(*(cell(row, column) for column in texts)), "", "", options)

        return Form(texts, (label,), ask, lambda row, e: solve_label(kind, find(cell(row, label)), e, shown))

    def ask_written(row: Row) -> Example:
        # The authors' files hold an instruction and the texts in one cell; the prompt here is always the same.
        found = glue.instruction.search(cell(row, "qestion"))
        if found is None:
            raise RowError(f"column 'qestion' is not a question of task {name}")
        return Example(glue.prompt.format(*(text.strip() for text in found.groups())), "", "", options)

    written = Form(
        ("qestion",), ("answer",), ask_written, lambda row, e: solve_label(kind, find(cell(row, "answer")), e, shown)
    )
    forms = [form(texts, label) for texts, label in glue.columns] + [written]
    return Task(
        name=name, kind=kind, labels=shown, max_new_tokens=4, description=glue.description,
        read=asker(forms, answered=True), ask=asker(forms, answered=False), score=label_scorer(kind, shown),
        texts=glue.columns[0][0],
    )  # fmt: skip
