"""Codes of words: public vectors in which words that are used alike are near each other.

They give every model the same coordinates for what a text says, whatever its tokenizer and width:

    code(w) = [ sqrt(R - 1) a / (a + q_w) (x_w - sum_v q_v x_v) / ||.|| ;  1 ]        R entries

with x_w the first R - 1 entries of the word's vector and q_w its share of all words: frequent words weigh little (the
smoothed inverse frequency of Arora, Liang and Ma, 2017). A text's feature is the sum of its words' codes.

Where a task asks about two texts, the words of the second one say whether the first has them, too (m = 1) or not (m = 0):

    code(w) = [ m x_w ;  (1 - m) x_w ;  m a_w ;  (1 - m) a_w ;  1 ]        a_w = a / (a + q_w)

and a pair's feature has the sums of these x, and how much of either text the other one has, by the weight of words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from h2tune.errors import MethodError
from h2tune.frames.anchor_text import words as spans

_SMOOTH = 1e-2
_OVERLAP = 3.0  # deviations of a shared part of two texts: it says more than any one direction of words

Read = list[tuple[int, int, Tensor]]
"""Words that have a code: number of the text, character after the word, code."""


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
            raise MethodError(
                f"codes of rank {rank} need word vectors of {rank - 1} entries, there are {vectors.shape[1]}"
            )
        share = counts.double() / counts.sum()
        x = vectors[:, : rank - 1].double()
        x = x - (share[:, None] * x).sum(0)
        x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-9)
        self.weights = (_SMOOTH / (_SMOOTH + share)).float()
        x = x * self.weights[:, None] * (rank - 1) ** 0.5
        self.codes = torch.cat([x, torch.ones(len(words), 1)], dim=1).float()
        self.index = {word: i for i, word in enumerate(words)}
        self.words, self.rank = words, rank

    def known(self, text: str) -> list[tuple[int, int]]:
        """The known words of a text: number of the word, and the character after it."""
        found = ((self.index.get(text[a:b].lower()), b) for a, b in spans(text))
        return [(i, end) for i, end in found if i is not None]

    def table(self) -> dict[str, Tensor]:
        """Code by word, as far as it can be said without a text."""
        return {word: self.codes[i] for word, i in self.index.items()}

    def read(self, texts: Sequence[str]) -> Read:
        return [(0, end, self.codes[i]) for i, end in self.known(texts[0])]

    def features(self, texts: Iterable[Sequence[str]]) -> Tensor:
        """``sum of codes / sqrt(number of words)``, texts x rank, in units of their standard deviation; the last is 1."""
        rows = []
        for text, *_ in texts:
            numbers = [i for i, _ in self.known(text)]
            rows.append(self.codes[numbers].sum(0) / max(1, len(numbers)) ** 0.5)
        found = torch.stack(rows)
        found[:, :-1] /= found[:, :-1].std().clamp_min(1e-9)
        found[:, -1] = 1
        return found


class PairCodes:
    """Codes of the second text's words in a pair.

    Args:
        words: codes of rank ``(rank - 3) // 2 + 1``, for what the words say.
        rank: entries of a pair's code; the last one is constant, one before it may be empty.

    Raises:
        ValueError: if the rank has no room.
    """

    def __init__(self, words: WordCodes, rank: int) -> None:
        self.inner, self.rank, self.wide = words, rank, words.rank - 1
        if self.wide != self.room(rank):
            raise MethodError(f"codes of pairs of rank {rank} need codes of words of rank {self.room(rank) + 1}")
        self.words, self.codes = words.words, words.codes

    @staticmethod
    def room(rank: int) -> int:
        """Entries that say what a word means, in a code of pairs."""
        if rank < 5:
            raise MethodError(f"codes of pairs of texts need a rank of at least 5, not {rank}")
        return (rank - 3) // 2

    def _weighed(self, text: str) -> list[tuple[str, int, float, Tensor]]:
        """Word, character after it, weight, what it says; a word without a vector says nothing and weighs most."""
        nothing, found = torch.zeros(self.wide), []
        for a, b in spans(text):
            word = text[a:b].lower()
            i = self.inner.index.get(word)
            known = i is not None
            found.append((word, b, float(self.inner.weights[i]) if known else 1.0,
                          self.inner.codes[i, :-1] if known else nothing))  # fmt: skip
        return found

    def table(self) -> dict[str, Tensor]:
        """Code by word, half shared and half not: where a linear map may start."""
        halves = [torch.cat([x, x, torch.zeros(self.rank - 2 * self.wide)]) / 2 for x in self.codes[:, :-1]]
        for half, weight in zip(halves, self.inner.weights, strict=True):
            half[2 * self.wide : 2 * self.wide + 2] = _OVERLAP * weight / 2
            half[-1] = 1
        return dict(zip(self.words, halves, strict=True))

    def read(self, texts: Sequence[str]) -> Read:
        first = {word for word, *_ in self._weighed(texts[0])}
        found: Read = []
        for word, end, weight, x in self._weighed(texts[1]):
            code = torch.zeros(self.rank)
            place = 0 if word in first else 1
            code[place * self.wide : (place + 1) * self.wide] = x
            code[2 * self.wide + place] = _OVERLAP * weight
            code[-1] = 1
            found.append((1, end, code))
        return found

    def features(self, texts: Iterable[Sequence[str]]) -> Tensor:
        """Pairs x rank; sums in units of their common standard deviation, shares in `_OVERLAP` deviations; the last is 1."""
        texts = list(texts)
        found = torch.zeros(len(texts), self.rank)
        for row, pair in zip(found, texts, strict=True):
            held = [self._weighed(text) for text in pair[:2]]
            both = {w for w, *_ in held[0]} & {w for w, *_ in held[1]}
            for word, _, _, x in held[1]:
                place = 0 if word in both else 1
                row[place * self.wide : (place + 1) * self.wide] += x / len(held[1]) ** 0.5
            for side, words in enumerate(held):
                weights = {word: weight for word, _, weight, _ in words}
                row[2 * self.wide + side] = sum(weights[w] for w in both) / max(sum(weights.values()), 1e-9)
        sums, shares = found[:, : 2 * self.wide], found[:, 2 * self.wide : 2 * self.wide + 2]
        sums /= sums.std().clamp_min(1e-9)
        shares -= shares.mean(0)
        shares *= _OVERLAP / shares.std(0, correction=0).clamp_min(1e-9)
        found[:, -1] = 1
        return found


TextCodes = WordCodes | PairCodes
