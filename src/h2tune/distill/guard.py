"""A path that recites private text does not leave: eight consecutive words of it that are not public."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from h2tune.frames.anchor_text import words as spans

WORDS = 8


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    folded = text.casefold()
    # A script without spaces has words only by Unicode's rules: in Chinese a character each.
    words = [word for a, b in spans(folded) for word in re.findall(r"\w+", folded[a:b])]
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
