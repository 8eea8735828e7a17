"""Tables in other forms than their file's name says: what to tell their owner."""

from __future__ import annotations

import json
from collections.abc import Sequence


def one_value(text: str) -> str | None:
    """What to say of a file of JSON lines that as a whole is one JSON value; None where it is not."""
    try:
        kind = "list" if isinstance(json.loads(text), list) else "object"
    except (ValueError, RecursionError):
        return None
    return f"the file holds one JSON {kind}; name it .json, or write one object a line"


def other_separator(names: Sequence[str]) -> str:
    """What to add to the names of a table's columns where there is only one, and it looks like many."""
    if len(names) != 1:
        return ""
    found = [word for mark, word in ((";", "semicolons"), ("\t", "tabs")) if mark in names[0]]
    return f"; separated by {found[0]}? save it with commas" if found else ""
