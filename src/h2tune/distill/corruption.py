"""A wrong path made of a right one: one number or operator changed."""

from __future__ import annotations

import random
import re

_NUMBER = re.compile(r"\d+")
DIGITS = 1000
"""Longer numbers stay as they are: Python converts none of more than 4300 digits."""
_OPERATOR = re.compile(r"(?<=[\d\s)])[-+*/](?=[\d\s(])")


def corrupted(path: str, seed: int) -> str | None:
    """The path with one number or one operator replaced, or None if it holds neither (numbers of up to `DIGITS` digits).

    The same seed changes the same place in the same way. A later copy of the number is not changed: a slip that runs
    through would be another right derivation of another question.
    """
    rng = random.Random(seed)
    numbers = (number for number in _NUMBER.finditer(path) if len(number[0]) <= DIGITS)
    places = [*numbers, *_OPERATOR.finditer(path)]
    if not places:
        return None
    place = rng.choice(places)
    if place[0].isdigit():
        value, moves = int(place[0]), [-10, -2, -1, 1, 2, 10]
        changed = str(rng.choice([value + move for move in moves if value + move >= 0]))
    else:
        changed = rng.choice([sign for sign in "+-*/" if sign != place[0]])
    return path[: place.start()] + changed + path[place.end() :]
