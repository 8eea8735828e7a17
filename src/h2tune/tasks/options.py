"""The options of a row, and the letters that are written before them: an answer that is a letter means one of these."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from h2tune.tasks.cells import plain_text
from h2tune.tasks.example import RowError

LETTERS = "ABCDEFGHIJ"
TOO_MANY = f"more than {len(LETTERS)} options; their letters go from {LETTERS[0]} to {LETTERS[-1]}"
_BRACKET = re.compile(r"\(?([A-J])\s*\)\s*", re.IGNORECASE)
_BRACKET_TWICE = re.compile(
    r"\A\(?([A-J])\s*\)\s*(?:\(?\1\s*\)\s*)?", re.IGNORECASE
)  # "(A) a ) 24", as in MathInstruct
_POINT = re.compile(r"([A-J])[.:]\s", re.IGNORECASE)
# Where an option of a line may begin. Brackets in "f(d)" are none of these.
_MARK = re.compile(r"(?:^|,)\s*([A-J])\s*\)|(?:^|(?<=[\s,]))\(([A-J])\s*\)", re.IGNORECASE)


def split_options(value: Any) -> tuple[list[str], str]:
    """Options without the letters before them, and these letters as written; an empty text where there are none.

    From a list (``A)5``), or a line (``a ) 24 , b ) 120`` or ``(A) 24 (B) 120``).

    Raises:
        RowError: there are no two options, one is empty, or their letters contradict each other.
    """
    given = value
    if isinstance(value, str):
        value = _listed(value) or _split_line(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, Sequence) or len(value) < 2:
        raise RowError(f"options should be a list of two or more, not {str(given)[:60]!r}")
    texts = [plain_text(option, "an option").strip() for option in value]
    letters = written_letters(texts)
    found = [_BRACKET_TWICE.sub("", text) for text in texts]
    if "" in found:
        raise RowError(f"option {found.index('') + 1} of {len(found)} is empty")
    return found, letters


def written_letters(texts: Sequence[str]) -> str:
    """The letters that options begin with, in their order; an empty text where they begin with none.

    Raises:
        RowError: two options have one letter, or some have none.
    """
    marks = [mark[1].upper() if (mark := _BRACKET.match(text.lstrip())) else "" for text in texts]
    if not any(marks):
        # A point may also follow an initial, as in "B. Franklin": then the letters are not the first of the alphabet.
        points = "".join(mark[1].upper() if (mark := _POINT.match(text.lstrip())) else "" for text in texts)
        return points if sorted(points) == list(LETTERS[: len(texts)]) else ""
    if "" in marks:
        if marks.index("") == len(LETTERS):
            raise RowError(TOO_MANY)
        bare = texts[marks.index("")].strip()[:40]
        raise RowError(f"some options begin with a letter and others do not ({bare!r}); write letters for all or none")
    if twice := [mark for mark in marks if marks.count(mark) > 1]:
        raise RowError(
            f"the letter {twice[0]} is written before {marks.count(twice[0])} of the options; give each its own"
        )
    return "".join(marks)


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
    """The options of a line, each with its letter."""
    starts = _in_order(line)
    if (other := _as_written(line, starts)) is not None:
        starts = other
    ends = [*starts[1:], len(line)]
    return [line[begin:end].strip(" ,\t\n") for begin, end in zip(starts, ends, strict=False)]


def _in_order(line: str) -> list[int]:
    # Letters are looked for in their order, so that an "a )" inside an option starts no new one.
    starts: list[int] = []
    position = 0
    for letter in f"{LETTERS}K":
        marker = re.compile(rf"(?:^|,)\s*{letter}\s*\)|\({letter}\s*\)", re.IGNORECASE).search(line, position)
        if marker is None:
            break
        if len(starts) == len(LETTERS):
            raise RowError(TOO_MANY)
        position = marker.end()
        starts.append(marker.start())
    return starts


def _as_written(line: str, starts: Sequence[int]) -> list[int] | None:
    """Where the options of a line begin whose letters are in another order than the alphabet's; None where they are not.

    They are where a letter stands before the A, or where the one that would come next stands elsewhere.
    """
    marks = list(_MARK.finditer(line))
    letters = [(mark[1] or mark[2]).upper() for mark in marks]
    following = LETTERS[len(starts) : len(starts) + 1]
    before = bool(marks) and (not starts or marks[0].start() < starts[0])
    if not before and (not following or following not in letters):
        return None
    if len(set(letters)) < len(letters) or line[: marks[0].start()].strip():
        raise RowError(f"the letters of the options come as {', '.join(letters)}; write the options as a list")
    return [mark.start() for mark in marks]
