"""A path that recites private text does not leave: eight consecutive words of it that are not public."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from h2tune.frames.anchor_text import words as spans

WORDS = 8
HELD = 8
"""Bytes of a digest that are kept of a private run: one in 10 ** 12 other runs is taken for one of ten million."""


def _runs(text: str) -> Iterator[bytes]:
    """Digests of all runs of eight words."""
    folded = text.casefold()
    # A script without spaces has words only by Unicode's rules: in Chinese a character each.
    words = [word.encode() for a, b in spans(folded) for word in re.findall(r"\w+", folded[a:b])]
    for start in range(len(words) - WORDS + 1):
        yield hashlib.blake2b(b" ".join(words[start : start + WORDS]), digest_size=2 * HELD).digest()


class Guard:
    """Knows every run of eight words of private text, but for those that also occur in public text.

    It keeps the first bytes of a digest of each, sorted. Two runs of the same bytes can only refuse a path that recites
    nothing. What is public is compared by whole digests, so that no private run is taken for a public one.

    Shorter private texts are not recognised; docs/lada.md says so.
    """

    def __init__(self, private: Iterable[str], public: Iterable[str]) -> None:
        known = {run for text in public for run in _runs(text)}
        held = bytearray()
        for text in private:
            for run in _runs(text):
                if run not in known:
                    held += run[:HELD]
        found = np.frombuffer(held, dtype=np.uint64)
        found.sort()  # in its place; np.unique takes several times the memory and the time
        fresh = np.ones(len(found), dtype=bool)
        fresh[1:] = found[1:] != found[:-1]
        self.runs: NDArray[np.uint64] = found[fresh]

    def recites(self, text: str) -> bool:
        """Whether the text holds such a run, whatever its case and punctuation."""
        asked = np.frombuffer(b"".join(run[:HELD] for run in _runs(text)), dtype=np.uint64)
        if not len(self.runs) or not len(asked):
            return False
        places = np.searchsorted(self.runs, asked).clip(max=len(self.runs) - 1)
        return bool((self.runs[places] == asked).any())
