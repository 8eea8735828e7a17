"""Anchor text: public sentences whose words are the rows on which models with different tokenizers agree.

Rows are words, not tokens, so the same n rows come out of every tokenizer: an encoder averages its activations over
the tokens of a word, a decoder takes the word's last token, the only one that has read the whole word. The first word
of a sentence is left out (its position is special in many models). One more row per sentence holds the place that a
classification head reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import regex
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from h2tune.errors import H2TuneError

# Word boundaries of Unicode's text segmentation (UAX 29).
_BOUNDARY = regex.compile(r"(?w)\b")


class AnchorError(H2TuneError, ValueError):
    """The anchors do not fit a model."""


def words(text: str) -> list[tuple[int, int]]:
    """Character spans of the words and punctuation marks of ``text``."""
    cuts = sorted({0, len(text), *(m.start() for m in _BOUNDARY.finditer(text))})
    return [(a, b) for a, b in pairwise(cuts) if not text[a:b].isspace()]


def vocabulary(texts: Iterable[str]) -> Counter[str]:
    """How often each word (lower case, with a letter in it) occurs."""
    counts: Counter[str] = Counter()
    for text in texts:
        spelled = (text[a:b].lower() for a, b in words(text))
        counts.update(word for word in spelled if any(c.isalpha() for c in word))
    return counts


@lru_cache(maxsize=2)  # every client of a run asks for the same anchors
def _known(anchors: tuple[str, ...]) -> frozenset[str]:
    return frozenset(vocabulary(anchors))


def coverage(anchors: Sequence[str], texts: Iterable[str]) -> tuple[float, list[str]]:
    """Share of the word occurrences in ``texts`` that the anchors hold, and the commonest words they lack."""
    known, wanted = _known(tuple(anchors)), vocabulary(texts)
    missing = Counter({w: n for w, n in wanted.items() if w not in known})
    total = sum(wanted.values())
    return (1 - sum(missing.values()) / total if total else 0.0), [w for w, _ in missing.most_common(20)]


@dataclass(frozen=True)
class AnchorBatch:
    """All anchors as one padded batch, and how its tokens average into rows.

    Attributes:
        input_ids, attention_mask: sentences x tokens.
        token, row, weight: triples of a sparse n x (sentences * tokens) averaging matrix.
        rows: n.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token: Tensor
    row: Tensor
    weight: Tensor
    rows: int

    def average(self, activations: Tensor, out: Tensor | None = None) -> Tensor:
        """Rows (n x d, float32) of activations (sentences x tokens x d), added to ``out`` where it is given."""
        flat = activations.reshape(-1, activations.shape[-1])
        picked = flat.index_select(0, self.token.to(flat.device)).float()
        out = torch.zeros(self.rows, flat.shape[-1]) if out is None else out
        return out.index_add_(0, self.row, (picked * self.weight.to(flat.device)[:, None]).cpu())

    def chunks(self, tokens: int) -> list[AnchorBatch]:
        """The same rows from smaller batches of sentences of like lengths, at most so many tokens each.

        Each knows the rows of its own sentences only; its averages leave all others at 0.
        """
        width, lengths = self.input_ids.shape[1], self.attention_mask.sum(1)
        sentence, found = self.token // width, []
        for picked in _by_size(lengths, tokens):
            longest = int(lengths[picked].max())
            place = torch.full((len(lengths),), -1).scatter_(0, picked, torch.arange(len(picked)))
            mine = place[sentence] >= 0
            token = place[sentence[mine]] * longest + self.token[mine] % width
            ids, mask = self.input_ids[picked, :longest], self.attention_mask[picked, :longest]
            found.append(AnchorBatch(ids, mask, token, self.row[mine], self.weight[mine], self.rows))
        return found


def _by_size(lengths: Tensor, tokens: int) -> list[Tensor]:
    """Sentences in groups that take at most ``tokens`` when padded to their longest; all in order if they fit in one."""
    if len(lengths) * int(lengths.max()) <= tokens:
        return [torch.arange(len(lengths))]
    groups: list[list[int]] = [[]]
    for sentence in torch.argsort(lengths, stable=True).tolist():
        if groups[-1] and (len(groups[-1]) + 1) * int(lengths[sentence]) > tokens:
            groups.append([])
        groups[-1].append(sentence)
    return [torch.tensor(group) for group in groups]


def anchor_batch(
    anchors: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, causal: bool
) -> AnchorBatch:
    """Tokenise the anchors and assign tokens to words; n is the same for every tokenizer.

    Raises:
        AnchorError: for a tokenizer without character offsets, or a sentence longer than the model's context.
    """
    if not tokenizer.is_fast:
        raise AnchorError("Frames need a fast tokenizer (it maps tokens to characters); this one is slow.")
    encoded = tokenizer(list(anchors), return_offsets_mapping=True, return_special_tokens_mask=True)
    longest = max(map(len, encoded["input_ids"]))
    if longest > max_length:
        raise AnchorError(f"An anchor has {longest} tokens, the model reads {max_length}: split long anchors.")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = torch.full((len(anchors), longest), pad)
    mask = torch.zeros_like(ids)
    token, row, weight, rows = [], [], [], 0
    for s, text in enumerate(anchors):
        tokens = encoded["input_ids"][s]
        ids[s, : len(tokens)] = torch.tensor(tokens)
        mask[s, : len(tokens)] = 1
        special = encoded["special_tokens_mask"][s]
        groups = _tokens_of_words(words(text), encoded["offset_mapping"][s], special)[1:]
        if causal:
            groups = [group[-1:] for group in groups]
        groups.append([len(tokens) - 1 if causal else 0])
        for group in groups:
            token += [s * longest + t for t in group]
            row += [rows] * len(group)
            weight += [1 / len(group)] * len(group)
            rows += 1
    return AnchorBatch(ids, mask, torch.tensor(token), torch.tensor(row), torch.tensor(weight), rows)


def _tokens_of_words(
    spans: list[tuple[int, int]], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> list[list[int]]:
    """For every word the tokens that overlap it more than any other word; failing that, those that touch it."""
    best: list[list[int]] = [[] for _ in spans]
    touching: list[list[int]] = [[] for _ in spans]
    for t, (start, end) in enumerate(offsets):
        if special[t] or start == end:
            continue
        shares = [(min(end, b) - max(start, a), w) for w, (a, b) in enumerate(spans) if a < end and start < b]
        for _, w in shares:
            touching[w].append(t)
        if shares:
            best[max(shares, key=lambda item: (item[0], -item[1]))[1]].append(t)
    for w, (some, any_) in enumerate(zip(best, touching, strict=True)):
        # Position 0 carries a sink in many decoders; a word that shares a token with the first keeps it if it must.
        chosen = some or any_
        best[w] = [t for t in chosen if t > 0] or chosen or [max(len(offsets) - 1, 0)]
    return best
