"""Labels: how a file writes them, and when a text is one of them.

They match exactly, after Unicode's canonical composition (NFC). Differences of case and spacing are passed over only
where the task says so, and never where two labels would become one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from h2tune.tasks.example import Example, Kind, RowError, TaskError, called
from h2tune.tasks.rows import composed, fold
from h2tune.tasks.scoring import score_choice, score_label

_WHOLE = re.compile(r"(-?\d+)\.0+")


def label_finder(
    name: str,
    labels: Sequence[str],
    written: Sequence[tuple[str, int]] = (),
    *,
    ignore_case: bool = False,
    preset: bool = False,
) -> Callable[[str], int]:
    """Index of a label as files write it: as in ``written``, or by its name. A ``preset`` takes no other labels.

    Raises:
        TaskError: if two labels are written alike.
    """
    known: dict[str, int] = {}
    for value, index in written:
        if known.setdefault(composed(value), index) != index:
            raise TaskError(f"labels: {value!r} is written for two labels")
    for index, label in enumerate(labels):
        known.setdefault(composed(label), index)  # what the file writes goes before what a label is called
    folded: dict[str, int] = {}
    for value, index in known.items():
        if folded.setdefault(fold(value), index) != index and ignore_case:
            raise TaskError(f"labels: {value!r} and another differ only in case or spaces; leave out ignore_case")

    def find(value: str) -> int:
        found = known.get(composed(value))
        if found is None and ignore_case:
            found = folded.get(fold(composed(value)))
        if found is None and (whole := _WHOLE.fullmatch(value)):
            found = known.get(whole[1])  # pandas writes a column of whole numbers with a gap in it as 0.0 and 1.0
        if found is None:
            raise RowError(_unknown(value, name, labels, known, folded, preset))
        return found

    return find


def _unknown(value: str, name: str, labels: Sequence[str], known: dict[str, int], folded: dict[str, int],
             preset: bool) -> str:  # fmt: skip
    others = [text for text in known if text not in labels]
    shown = ", ".join(labels) + (f" (also written {', '.join(others)})" if others else "")
    text = f"label {value!r} is not known to {called(name)}, which knows {shown}"
    near = [other for other in known if fold(other) == fold(composed(value))]
    if not near and fold(value) in ("true", "false") and preset:
        numbers = " and ".join(f"{index} for {label}" for index, label in enumerate(labels))
        return f"{text}; for true and false write {numbers} in the file, or an own task with labels: (docs/tasks.md)"
    if not near and fold(value) in ("true", "false"):
        yes, no = ("true", "false") if value.islower() else ("True", "False")
        return f'{text}; for true and false write labels: {{"{yes}": ..., "{no}": ...}}, with quotation marks'
    if not near:
        return text
    meet = len({known[other] for other in near}) > 1 or len(set(folded)) < len(known)
    return f"{text}; it differs from {near[0]!r} in case or spaces only: " + (
        "add it to labels:" if meet else "add it to labels:, or set ignore_case: true"
    )


def solve_label(kind: Kind, index: int, example: Example, labels: Sequence[str]) -> Example:
    """The example with its label: as an index for a private head, else as a word to write."""
    if kind == "classify":
        return replace(example, label=index, gold=labels[index])
    return replace(example, answer=example.lead + labels[index], gold=labels[index])


def label_scorer(kind: Kind, labels: tuple[str, ...]) -> Callable[[Example, str], bool]:
    """For a private head the text is the predicted label; else it begins with the label."""
    if kind == "classify":
        return lambda example, text: text == example.gold
    return score_choice if kind == "choice" else score_label(labels)
