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
        RowError: there are no two options, one is empty, or the letters of a line contradict each other.
    """
    given = value
    if isinstance(value, str):
        value = _listed(value) or _split_line(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, Sequence) or len(value) < 2:
        raise RowError(f"options should be a list of two or more, not {str(given)[:60]!r}")
    texts = [plain_text(option, "an option").strip() for option in value]
    if len(texts) > len(LETTERS) and re.match(r"\(?K\s*\)", texts[len(LETTERS)], re.IGNORECASE):
        raise RowError(TOO_MANY)
    letters = written_letters(texts)
    found = [without_letter(text) for text in texts] if letters else texts
    if "" in found:
        raise RowError(f"option {found.index('') + 1} of {len(found)} is empty")
    return found, letters


def written_letters(texts: Sequence[str]) -> str:
    """The letters that options begin with, in their order; an empty text where they begin with none.

    Where only some do, the letters count if each is that of its place, as in ``A)5``, ``B)6``, ``neither``, and the others
    get theirs; else they are part of the texts, as in ``(c) 2020``. One letter may come twice, for `meant` to judge.
    """
    marks = [mark[1].upper() if (mark := _BRACKET.match(text.lstrip())) else "" for text in texts]
    if not any(marks):
        # A point may also follow an initial, as in "B. Franklin": then the letters are not the first of the alphabet.
        points = "".join(mark[1].upper() if (mark := _POINT.match(text.lstrip())) else "" for text in texts)
        return points if sorted(points) == list(LETTERS[: len(texts)]) else ""
    if all(marks):
        return "".join(marks)
    placed = all(mark in ("", letter) for mark, letter in zip(marks, LETTERS, strict=False))
    bare = [without_letter(text) for text in texts]
    apart = "" not in bare and len(set(bare)) == len(bare)  # else the letters are all that some options say
    return LETTERS[: len(texts)] if placed and apart else ""


def without_letter(text: str) -> str:
    """An option without the letter in brackets before it."""
    return _BRACKET_TWICE.sub("", text.strip())


def different(letters: str) -> bool:
    """Whether no letter is written twice."""
    return len(set(letters)) == len(letters)


def meant(letter: str, letters: str, count: int) -> int | None:
    """Which of the options a letter means: the one before which it is written, or the one in its place.

    Raises:
        RowError: a letter is written twice, and that leaves open which is meant.
    """
    place = LETTERS[:count].find(letter)
    if not letters or different(letters):
        place = (letters or LETTERS[:count]).find(letter)
    elif letter in letters and (letters.count(letter) > 1 or letters.index(letter) != place):
        twice = next(mark for mark in letters if letters.count(mark) > 1)
        raise RowError(
            f"the letter {twice} is written before {letters.count(twice)} of the options, so that the answer {letter} could"
            " mean several; give each its own"
        )
    return place if place >= 0 else None


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

    Options begin alike, all with ``(A)`` or all with ``A)``: of ``a ) 5 (d) , b ) 6`` the d is part of an option.
    """
    marks = list(_MARK.finditer(line))
    if not marks or line[: marks[0].start()].strip():
        return None
    alike = [mark for mark in marks if bool(mark[1]) == bool(marks[0][1])]
    if starts and starts[0] <= marks[0].start():
        # In order from the line's beginning: only a whole alphabet in another order is a better reading.
        whole = sorted(_letters(alike)) == list(LETTERS[: len(alike)]) and not _gaps(line, alike)
        return [mark.start() for mark in alike] if whole and len(alike) > len(starts) else None
    for some in (marks, alike):
        if different(_letters(some)) and not _gaps(line, some):
            return [mark.start() for mark in some]
    raise RowError(f"the letters of the options come as {', '.join(_letters(marks))}; write the options as a list")


def _letters(marks: Sequence[re.Match[str]]) -> str:
    return "".join((mark[1] or mark[2]).upper() for mark in marks)


def _gaps(line: str, marks: Sequence[re.Match[str]]) -> bool:
    """Whether one of the options is empty."""
    ends = [*(mark.start() for mark in marks[1:]), len(line)]
    return any(not line[mark.end() : end].strip(" ,\t\n") for mark, end in zip(marks, ends, strict=True))
