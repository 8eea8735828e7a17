"""Frames by glossary: a public list of terms gives every model the same coordinates, without any exchange.

Every term w has a public code c(w), every meaning m a public code o(m): unit vectors of R entries, drawn from a hash of
the name. A_i is fitted so that it reads c(w) where a model has just read the term w, and nothing elsewhere; B_i is
then practised so that a core which maps c(w) to o(m) makes the model use w as if it meant m. Such a core is written
down directly, by ridge regression,

    S = O C^T-inverse = O (C^T C + ridge I)^-1 C^T,    C = [c(w)], O = [o(m_w)],

for public practice problems in which terms get random meanings, new ones in every episode. Nobody's data and no term's
true meaning is involved. After that a core is an associative memory with the same keys and values in every model, and
the mean of two cores is the union of what they hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from h2tune.core.slots import Layout, input_kind
from h2tune.errors import MethodError
from h2tune.frames.activations import record
from h2tune.frames.anchor_text import anchor_batch, words
from h2tune.tasks.prompts import Encoded

_RIDGE_CODES, _RIDGE_READ = 0.1, 1e-2


def code(name: str, rank: int) -> Tensor:
    """The public code of a name: a unit vector of ``rank`` entries that depends on nothing else."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    vector = torch.randn(rank, generator=torch.Generator().manual_seed(seed))
    length: Tensor = vector.norm()
    return vector / length


def written(lexicon: Mapping[str, str], rank: int) -> Tensor:
    """The rank x rank matrix that maps the code of every term to the code of its meaning."""
    keys = torch.stack([code(f"term {term.lower()}", rank) for term in lexicon], dim=1)
    values = torch.stack([code(f"meaning {meaning}", rank) for meaning in lexicon.values()], dim=1)
    gram = keys.T @ keys + _RIDGE_CODES * torch.eye(keys.shape[1])
    solved: Tensor = torch.linalg.solve(gram, keys.T)
    return values @ solved


@dataclass(frozen=True)
class Episode:
    """Practice problems under one assignment of meanings.

    Attributes:
        lexicon: term -> meaning, drawn at random; the same for all rows of the episode.
        rows: whatever the trainer reads (encoded examples). texts: the prompts, for fitting A.
    """

    lexicon: dict[str, str]
    rows: list[Encoded]
    texts: list[str]


def fit_readers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    texts: Sequence[str],
    codes: Mapping[str, Tensor],
    max_length: int,
    causal: bool,
) -> list[dict[str, Tensor]]:
    """For each block, kind of input -> A (rank x d_in): a term's last token is read as its code, other words as 0.

    Weighted ridge regression; terms and other words weigh the same in total, however rare the terms are.

    Args:
        codes: by term in lower case, vectors of ``rank`` entries.
    """
    batch = anchor_batch(texts, tokenizer, max_length, causal)
    labels = [w for text in texts for w in (*(text[a:b].lower() for a, b in words(text)[1:]), "")]
    is_term = torch.tensor([label in codes for label in labels])
    if not is_term.any():
        raise MethodError("none of the glossary's terms occurs in the practice texts")
    nothing = torch.zeros(len(next(iter(codes.values()))))
    target = torch.stack([codes.get(w, nothing) for w in labels])
    weight = torch.where(is_term, 1 / is_term.sum(), 1 / (~is_term).sum())[:, None]
    readers: list[dict[str, Tensor]] = [{} for _ in range(layout.depth)]

    def fit(block: int, reads: dict[str, Tensor], writes: dict[str, Tensor]) -> None:
        for slot, x in reads.items():
            hessian = x.T @ (weight * x)
            hessian += _RIDGE_READ * hessian.diagonal().mean() * torch.eye(len(hessian))
            readers[block][input_kind(slot)] = torch.linalg.solve(hessian, x.T @ (weight * target)).T

    record(model, layout, batch, fit)
    return readers
