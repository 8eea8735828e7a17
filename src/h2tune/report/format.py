"""Numbers and names as a reader wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

MISSING = "\u2013"
MINUS = "\u2212"
NARROW = "\u202f"  # keeps a number and its unit on one line


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}{NARROW}%".replace("-", MINUS)


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, always signed unless it rounds to zero."""
    if value is None:
        return MISSING
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}".replace("-", MINUS) if rounded else "0.0"


def decimal(value: float | None, digits: int = 2) -> str:
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}".replace(",", NARROW)


def size(value: float | None) -> str:
    """Bytes in decimal units, as network people count them."""
    if value is None:
        return MISSING
    power = 0
    while abs(value) >= 999.5 and power < 4:
        value, power = value / 1000, power + 1
    digits = 1 if power and abs(value) < 99.5 else 0
    return f"{value:.{digits}f}{NARROW}{('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float | None) -> str:
    if seconds is None or seconds < 0:
        return MISSING
    if seconds < 60:
        return f"{seconds:.0f}{NARROW}s" if seconds >= 10 else f"{seconds:.1f}{NARROW}s"
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    if hours:
        return f"{hours}{NARROW}h {minutes % 60:02d}{NARROW}min"
    return f"{minutes}{NARROW}min {round(seconds) % 60:02d}{NARROW}s"


def tone(gain: float | None) -> str:
    """Which way a difference points once it is rounded as it is shown: better, worse, same or unknown."""
    if gain is None:
        return "unknown"
    rounded = round(100 * gain, 1)
    return "better" if rounded > 0 else "worse" if rounded < 0 else "same"


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def clean(text: Any) -> str:
    """Text without control or direction marks: names come from others and must not steer a terminal."""
    return printable(" ".join(str(text).split()))


def printable(line: str) -> str:
    """A line of text whose spaces stay."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


def plain(text: str) -> str:
    """The same with nothing but ASCII for spaces and dashes: not every log and terminal knows the typographic ones."""
    return text.translate({0x202F: " ", 0x2013: "-", 0x2212: "-"})


# What the HTML templates may call.
FILTERS: dict[str, Callable[..., str]] = {
    "percent": percent,
    "points": points,
    "decimal": decimal,
    "count": count,
    "size": size,
    "duration": duration,
}
