"""A path that recites private text does not leave: eight consecutive words of it that are not public."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

WORDS = 8


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    for start in range(len(words) - WORDS + 1):
        yield tuple(words[start : start + WORDS])


class Guard:
    """Knows every run of eight words of private text, but for those that also occur in public text.

    Shorter private texts are not recognised; docs/lada.md says so.
    """

    def __init__(self, private: Iterable[str], public: Iterable[str]) -> None:
        held = {run for text in private for run in _runs(text)}
        self.runs = held - {run for text in public for run in _runs(text)}

    def recites(self, text: str) -> bool:
        """Whether the text holds such a run, whatever its case and punctuation."""
        return any(run in self.runs for run in _runs(text))
