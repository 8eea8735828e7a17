"""Keys that do not go together, and all mistakes of a file at once, also those that others would hide."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ValidationError, ValidationInfo, model_validator

from h2tune.config.mistakes import in_lines

PAST = {"past": True}  # context of a validation that leaves conflicts to whoever asks


class Conflict(NamedTuple):
    """Keys that do not go together.

    places: of the keys, as in ``ValidationError.errors()``; without the first of them there is no conflict.
    """

    line: str
    places: tuple[tuple[str | int, ...], ...] = ()

    def inside(self, *steps: str | int, of: str = "") -> Conflict:
        """The same, told from further out."""
        return Conflict(f"{of}{self.line}", tuple((*steps, *place) for place in self.places))


class Agreeing(BaseModel):
    """A model whose keys have to go together."""

    def conflicts(self) -> Iterator[Conflict]:
        """All of them."""
        yield from ()

    @model_validator(mode="after")
    def _agree(self, info: ValidationInfo) -> Self:
        if info.context != PAST and (lines := [conflict.line for conflict in self.conflicts()]):
            raise ValueError("\n".join(lines))
        return self


M = TypeVar("M", bound=Agreeing)


def checked(kind: type[M], data: dict[str, Any], explain: Callable[[Any, str], str]) -> tuple[M | None, list[str]]:
    """Plain data as what they are, and a line for each mistake.

    With mistakes: without the keys that are wrong or in conflict, or None if that is nothing; for looking on, not for use.

    Args:
        explain: as for `in_lines`.
    """
    try:
        return kind.model_validate(data), []
    except ValidationError as error:
        errors = error.errors()
    problems, wrong = in_lines(errors, data, explain), [error["loc"] for error in errors]
    found = _past(kind, data := without(data, wrong))
    if found is None:
        return None, problems
    # Where a key was left out, its default conflicts with nothing.
    left = [c for c in found.conflicts() if not any(loc[: len(at)] == at for at in c.places for loc in wrong)]
    problems += [conflict.line for conflict in left if conflict.line not in problems]
    return _past(kind, without(data, [conflict.places[0] for conflict in left if conflict.places])), problems


def _past(kind: type[M], data: dict[str, Any]) -> M | None:
    try:
        return kind.model_validate(data, context=PAST)
    except ValidationError:
        return None


def without(data: dict[str, Any], places: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Plain data without the keys at these places, which are those of ``ValidationError.errors()``."""
    data = copy.deepcopy(data)
    for place in places:
        at: Any = data
        owner: Any = None
        key: Any = None
        for step in place:
            try:
                inner = at[step]
            except (KeyError, IndexError, TypeError):
                break  # a branch of a union, which is no key
            owner, key, at = at, step, inner
        if isinstance(owner, dict):
            owner.pop(key, None)
    return data
