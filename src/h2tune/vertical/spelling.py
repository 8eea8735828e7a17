"""Which spellings of an id or of a class name are one: parties compare only hashes of this form."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def normalise(name: str) -> str:
    """One form for the spellings of an id or a class name: no case, no spaces, one form of every character."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def alike(names: Iterable[str | None]) -> tuple[str, str] | None:
    """The first two different names that are one once normalised, if there are any."""
    first: dict[str, str] = {}
    for name in names:
        if name is not None and (before := first.setdefault(normalise(name), name)) != name:
            return before, name
    return None
