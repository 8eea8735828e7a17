"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``200KB`` or ``1.5 GiB``; raises ValueError otherwise."""
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})\s*([A-Za-z]*)\s*", text, re.ASCII)
    if not match or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write for example 200kB or 2GB")
    return int(Fraction(match[1]) * _UNITS[match[2].upper()])
