"""What is wrong with a value of a YAML file, in plain words in place of pydantic's."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from pydantic.fields import FieldInfo

_WHOLE, _NUMBER, _MAPPING = "should be a whole number", "should be a number", "should be a mapping, `key: value`"
_WORDS = {
    "missing": "is missing",
    "int_parsing": _WHOLE, "int_type": _WHOLE, "int_from_float": _WHOLE,
    "float_parsing": _NUMBER, "float_type": _NUMBER, "finite_number": "should be a finite number",
    "bool_parsing": "should be true or false", "bool_type": "should be true or false",
    "string_type": "should be text; write it in quotation marks", "string_too_short": "should not be empty",
    "list_type": "should be a list", "dict_type": _MAPPING, "model_type": _MAPPING, "model_attributes_type": _MAPPING,
    "greater_than": "should be more than {gt}", "greater_than_equal": "should be {ge} or more",
    "less_than": "should be less than {lt}", "less_than_equal": "should be {le} or less",
    "too_short": "needs {min_length} or more entries", "literal_error": "should be {expected}",
}  # fmt: skip
_KINDS = ("int", "float", "str", "bool")  # the branch of a union that did not fit, which pydantic puts after the key
_MEMBERS = {"clients": "client", "parties": "party"}
_NAME = "^[A-Za-z0-9]"  # how the pattern of a name begins
_PATTERNS = {  # how others begin: what is meant
    "^(auto": "should be auto, cpu, cuda, cuda:1 (the second GPU), mps, xpu, hpu or npu",
    "^[1-9]": "should be a part and the number of parts, such as 1/3",
}
_NOTHING = ("none", "None", "nil", "NULL")


def in_lines(errors: Sequence[Any], data: Any, explain: Callable[[Any, str], str]) -> list[str]:
    """A line for each place with mistakes.

    Args:
        errors: of ``ValidationError.errors()``. data: what was validated, for the names of clients and parties.
        explain: one line for an error and the place where it is. A value that may be of several kinds has an error for
            each kind; their lines become one.
    """
    found: dict[str, list[str]] = {}
    for error in errors:
        place = _place(error["loc"], data)
        lines = explain(error, place).removeprefix("config: ").splitlines()
        known = found.setdefault(place, [])
        known += [line for line in lines if line not in known]
    return [line for place, lines in found.items() for line in _merged(place, lines)]


def _merged(place: str, lines: list[str]) -> list[str]:
    """``a: should be X, not 3`` and ``a: should be Y, not 3`` as ``a: should be X or Y, not 3``."""
    start = f"{place}: should be "
    if len(lines) < 2 or not all(line.startswith(start) and ", not " in line for line in lines):
        return lines
    kinds = [line.removeprefix(start).rpartition(", not ") for line in lines]
    return [f"{start}{' or '.join(kind for kind, _, _ in kinds)}, not {kinds[0][2]}"]


def _place(steps: Sequence[Any], data: Any) -> str:
    """``training.steps``; ``shop: keep`` for a client or party that has a name, else ``client 2: keep``."""
    steps, start = [step for step in steps if step not in _KINDS and "[" not in str(step)], ""
    if len(steps) > 1 and steps[0] in _MEMBERS:
        member = data[steps[0]][steps[1]]
        name = member.get("name") if isinstance(member, dict) else None
        start = name if isinstance(name, str) else f"{_MEMBERS[steps[0]]} {steps[1] + 1}"
        start, steps = f"{start}: " if steps[2:] else start, steps[2:]
    return start + ".".join(map(str, steps)) or "config"


def in_words(error: Any, field: FieldInfo | None = None) -> str:
    """What is wrong, for one entry of ``ValidationError.errors()``: without the key, with the value where it is short.

    Args:
        field: the key's, if it is known: whoever writes `none` for a number that may be 0 is told so.
    """
    kind, given, limits = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "string_pattern_mismatch" and str(limits.get("pattern", "")).startswith(_NAME):
        space = "spaces, " if " " in limits["pattern"] else ""
        return (
            f"should have only letters from a to z, digits, {space}dots, hyphens and underscores, and begin with a letter or a"
            f" digit, not {given!r}"
        )
    if kind == "string_pattern_mismatch" and (words := _PATTERNS.get(str(limits.get("pattern", ""))[:6])):
        return f"{words}, not {given!r}"
    if kind not in _WORDS:
        return str(error["msg"]).removeprefix("Value error, ")
    words = _WORDS[kind].format(**limits)
    if kind == "missing" or not isinstance(given, str | int | float):
        return words
    words += f", not {given!r}"
    if kind == "literal_error":
        choices = [choice.strip(" '") for choice in limits["expected"].replace(" or ", ",").split(",")]
        near = difflib.get_close_matches(str(given), choices, 1, 0.5)
        return f"{words}. Did you mean `{near[0]}`?" if near else words
    return f"{words}; {_nothing(field)}" if given in _NOTHING else words


def _nothing(field: FieldInfo | None) -> str:
    """How nothing is written."""
    if field is None or not any(getattr(limit, "ge", None) == 0 for limit in field.metadata):
        return "YAML's word for nothing is `null`"
    _, _, null = (field.description or "").partition("null: ")
    return "write 0 for none" + (f"; null is {null}" if null else "")
