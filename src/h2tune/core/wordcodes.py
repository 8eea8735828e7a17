"""Codes of words: public vectors in which words that are used alike are near each other.

They give every model the same coordinates for what a text says, whatever its tokenizer and width:

    code(w) = [ sqrt(R - 1) a / (a + q_w) (x_w - sum_v q_v x_v) / ||.|| ;  1 ]        R entries

with x_w the first R - 1 entries of the word's vector and q_w its share of all words: frequent words weigh little (the
smoothed inverse frequency of Arora, Liang and Ma, 2017). A text's feature is the sum of its words' codes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from h2tune.core.anchors import words as spans

_SMOOTH = 1e-2


class WordCodes:
    """Codes of a vocabulary.

    Args:
        words: in lower case. vectors: words x d. counts: how often each occurs in plain text.
        rank: entries of a code, the last one constant; d >= rank - 1.

    Raises:
        ValueError: if the vectors have too few entries.
    """

    def __init__(self, words: list[str], vectors: Tensor, counts: Tensor, rank: int) -> None:
        if rank < 2 or vectors.shape[1] < rank - 1:
            raise ValueError(
                f"codes of rank {rank} need word vectors of {rank - 1} entries, there are {vectors.shape[1]}"
            )
        share = counts.double() / counts.sum()
        x = vectors[:, : rank - 1].double()
        x = x - (share[:, None] * x).sum(0)
        x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-9)
        x = x * (_SMOOTH / (_SMOOTH + share))[:, None] * (rank - 1) ** 0.5
        self.codes = torch.cat([x, torch.ones(len(words), 1)], dim=1).float()
        self.index = {word: i for i, word in enumerate(words)}
        self.words, self.rank = words, rank

    def known(self, text: str) -> list[tuple[int, int]]:
        """The known words of a text: number of the word, and the character after it."""
        found = ((self.index.get(text[a:b].lower()), b) for a, b in spans(text))
        return [(i, end) for i, end in found if i is not None]

    def features(self, texts: Iterable[str]) -> Tensor:
        """``sum of codes / sqrt(number of words)``, texts x rank, in units of their standard deviation; the last is 1."""
        rows = []
        for text in texts:
            numbers = [i for i, _ in self.known(text)]
            rows.append(self.codes[numbers].sum(0) / max(1, len(numbers)) ** 0.5)
        found = torch.stack(rows)
        found[:, :-1] /= found[:, :-1].std().clamp_min(1e-9)
        found[:, -1] = 1
        return found
