"""Sentence and sentence-pair classification: SST-2, QQP, QNLI and MRPC, by a private head or in words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from h2tune.tasks.cells import trimmed
from h2tune.tasks.example import Example, Form, Kind, Row, RowError, Task
from h2tune.tasks.labels import label_finder, label_scorer, solve_label
from h2tune.tasks.rows import asker, reader


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


def glue_task(name: str, kind: Kind) -> Task:
    """One of the GLUE tasks as ``classify`` (private head), ``generate`` or ``choice`` (over the words)."""
    glue = GLUE[name]
    shown = glue.labels if kind == "classify" else glue.words
    numbers = tuple((str(index), index) for index in range(len(shown)))
    words = tuple((word, index) for index, word in enumerate(glue.words))
    names = tuple((label, index) for index, label in enumerate(glue.labels))
    find = label_finder(name, shown, numbers + words + names, ignore_case=True, preset=True)
    said = {"classify": "{label}", "generate": " {label}", "choice": " {option}"}[kind]
    options = tuple(f" {word}" for word in shown) if kind == "choice" else ()

    def form(texts: tuple[str, ...], label: str) -> Form:
        def ask(row: Row) -> Example:
            return Example(glue.prompt.format(*(trimmed(row, column) for column in texts)), "", "", options)

        prompt = glue.prompt.format(*(f"{{{text}}}" for text in texts))
        return Form(
            texts, (label,), ask, lambda row, e: solve_label(kind, find(trimmed(row, label)), e, shown), prompt, said,
            chosen=True, options=tuple(shown),
        )  # fmt: skip

    def ask_written(row: Row) -> Example:
        # The authors' files hold an instruction and the texts in one cell; the prompt here is always the same.
        found = glue.instruction.search(trimmed(row, "qestion"))
        if found is None:
            raise RowError(f"column 'qestion' is not a question of task {name}")
        return Example(glue.prompt.format(*(text.strip() for text in found.groups())), "", "", options)

    written = Form(
        ("qestion",),
        ("answer",),
        ask_written,
        lambda row, e: solve_label(kind, find(trimmed(row, "answer")), e, shown),
        glue.prompt.format(*(f"{{{text}}}" for text in glue.columns[0][0])),
        said,
        True,
        "The texts are taken out of the instruction in {qestion}.",
        tuple(shown),
    )
    forms = [form(texts, label) for texts, label in glue.columns] + [written]
    return Task(
        name=name, kind=kind, labels=shown, max_new_tokens=4, description=glue.description,
        read=reader(forms), ask=asker(forms), score=label_scorer(kind, shown),
        texts=glue.columns[0][0], forms=tuple(forms),
    )  # fmt: skip
