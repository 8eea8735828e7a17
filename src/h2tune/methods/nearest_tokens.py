"""The token of a vocabulary with the least edit distance to another's token (MinED of FedMKT, arXiv 2406.02224).

Levenshtein's distance to all tokens of one length at once: a row of its table needs the row before and a running minimum,
    row[j] = min(before[j] + 1, before[j - 1] + (a_i != b_j), row[j - 1] + 1)  =  j + min over k <= j of (t[k] - k),
t being the least of the first two. Lengths are taken by how much they differ from the token's, which no distance is below.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint32]


def _codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def edit_distances(text: str, others: Codes) -> NDArray[np.int32]:
    """Levenshtein's distance from a text to each of several of one length, given as rows of character codes."""
    count, length = others.shape
    steps = np.arange(length + 1, dtype=np.int32)
    row = np.broadcast_to(steps, (count, length + 1)).copy()
    for number, code in enumerate(_codes(text), 1):
        least = np.empty_like(row)
        least[:, 0] = number
        np.minimum(row[:, 1:] + 1, row[:, :-1] + (others != code), out=least[:, 1:])
        row = np.minimum.accumulate(least - steps, axis=1) + steps
    last: NDArray[np.int32] = row[:, -1]
    return last


class NearestTokens:
    """A vocabulary that is asked for its nearest token.

    Args:
        known: id of each spelling.
    """

    def __init__(self, known: Mapping[str, int]) -> None:
        self.known = dict(known)
        by_length: dict[int, list[tuple[int, str]]] = {}
        for spelling, token in self.known.items():
            by_length.setdefault(len(spelling), []).append((token, spelling))
        # Ids ascend within a length, so that the first of equals has the least.
        ordered = {length: sorted(tokens) for length, tokens in by_length.items()}
        self.ids = {length: [token for token, _ in tokens] for length, tokens in ordered.items()}
        self.codes = {
            length: _codes("".join(spelling for _, spelling in tokens)).reshape(len(tokens), length)
            for length, tokens in ordered.items()
        }

    def nearest(self, token: str) -> int:
        """Id of the token with the least edit distance; equal distances in the order of the ids."""
        if token in self.known:
            return self.known[token]
        found: tuple[int, int] | None = None
        for length in sorted(self.codes, key=lambda length: (abs(length - len(token)), length)):
            if found is not None and abs(length - len(token)) > found[0]:
                break
            distances = edit_distances(token, self.codes[length])
            place = int(distances.argmin())
            best = int(distances[place]), self.ids[length][place]
            found = best if found is None else min(found, best)
        if found is None:
            raise ValueError("a vocabulary without tokens has no nearest one")
        return found[1]
