"""The label bias: a client's own prior of its labels, fitted before anything is shared.

A model that knows the task may still prefer one label, or none of them. Gradients of two such models point apart, since
each corrects its own prior first. So every client whose answers are chosen, and whose rows all offer the same options, fits
one number for each token of the options at each place of the answer, added to the token's logit there. It stays with the
client. A client that writes its answers has none: `generate` adds nothing to what a model says.

Why each place by itself: the end of an answer follows a label and never stands in its place. A number for the end that
held everywhere would have to be large on models that seldom end an answer, and would then compete with the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from h2tune.tasks.dataset import sample
from h2tune.tasks.example import Example
from h2tune.tasks.prompts import IGNORED, Encoded, encode_options

LABEL_BIAS = "label_bias.json"  # the file that holds it beside an adapter
MOST = 64  # tokens of all options together; with more, the options are texts rather than labels
MOST_ROWS = 2048  # that it is fitted to: more say nothing new of so few numbers, and each is a pass of the model
_RIDGE = 1e-2  # pull of each number towards 0, against the sum of the losses: keeps a certain label's finite
_PRIOR = 16  # rows that each label is counted for beforehand: a few rows say little about how frequent the labels are
_STEPS = 100
_AT_ONCE = 1 << 22  # logits that are in double precision at a time: 32 MB


def fitted_to(rows: Sequence[Encoded], seed: int) -> Sequence[Encoded]:
    """The training rows that the bias is fitted to: all, or a sample of so many, the same for a seed.

    The first row of each answer that the sample lacks comes after it: a rare label is no label that no row has.
    """
    drawn = sample(list(rows), MOST_ROWS, seed)
    lacking = {_answer(row): row for row in reversed(rows)} if len(drawn) < len(rows) else {}
    for row in drawn:
        lacking.pop(_answer(row), None)
    return [*drawn, *lacking.values()]


def _answer(row: Encoded) -> tuple[int, ...]:
    return tuple(token for token in row.labels if token != IGNORED)


def label_tokens(examples: Sequence[Example], tokenizer: Any) -> list[list[int]]:
    """Tokens that the options have at each place of the answer, where every row offers the same few; none otherwise."""
    places = [
        sorted(set(tokens) - {IGNORED}) for tokens in zip_longest(*_options(examples, tokenizer), fillvalue=IGNORED)
    ]
    return places if len({token for tokens in places for token in tokens}) <= MOST else []


def telling_tokens(examples: Sequence[Example], tokenizer: Any) -> list[int]:
    """Of `label_tokens` those that tell the options apart: not every option has them, as it has the end of text."""
    tokens = {token for place in label_tokens(examples, tokenizer) for token in place}
    options = _options(examples, tokenizer) if tokens else []
    return sorted(token for token in tokens if not all(token in option for option in options))


def _options(examples: Sequence[Example], tokenizer: Any) -> list[list[int]]:
    """Answer tokens of each option, where every row offers the same ones; none otherwise."""
    if not examples or not examples[0].options:
        return []
    first = examples[0]
    if any(set(example.options) != set(first.options) for example in examples):
        return []
    rows = encode_options([first], tokenizer, max_length=1 << 30)[0]
    return [[token for token in row.labels if token != IGNORED] for row in rows]


def answer_places(labels: Tensor) -> Tensor:
    """Which token of its row's answer each asked position is, from 0; in the order in which passes give their logits."""
    asked = labels[:, 1:] != IGNORED
    return (asked.cumsum(1) - 1)[asked]


@dataclass(frozen=True)
class Heard:
    """Of what a model says to a batch of rows, what the bias is fitted to: a few numbers instead of a whole vocabulary.

    Attributes:
        rows: how many answers there are.
        places: by place of the answer, the logits of its tokens (positions x tokens), all other tokens as one (positions x 1),
            and which token is right.
    """

    rows: int
    places: Sequence[tuple[Tensor, Tensor, Tensor]]

    @classmethod
    def of(cls, tokens: Sequence[Sequence[int]], logits: Tensor, wanted: Tensor, places: Tensor) -> Heard:
        """From logits (positions x vocabulary), the right token of each position and its place (`answer_places`)."""
        found = []
        for place, few in enumerate(tokens):
            # A cut answer may ask for a token where no option has it.
            here = (places == place) & torch.isin(wanted, torch.tensor(few, device=wanted.device))
            column = {token: i for i, token in enumerate(few)}
            goal = torch.tensor([column[int(token)] for token in wanted[here]], dtype=torch.long)
            found.append((*_told_apart(logits, here.nonzero()[:, 0], few), goal))
        return cls(int((places == 0).sum()), found)


def _told_apart(logits: Tensor, positions: Tensor, few: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits of some tokens at some positions, and all other tokens as one, in double precision."""
    parts = max(1, -(-len(positions) * logits.shape[1] // _AT_ONCE))  # a copy of all would take twice their memory
    known, rest = [], []
    for some in positions.tensor_split(parts):
        said = logits[some].detach().double().cpu()
        known.append(said[:, few])
        said[:, few] = -torch.inf
        rest.append(said.logsumexp(-1, keepdim=True))
    return torch.cat(known), torch.cat(rest)


@dataclass(frozen=True)
class LabelBias:
    """Numbers for some tokens at each place of an answer; the last place stands for all that may follow it.

    Attributes:
        tokens: ids, by place.
        values: what is added to their logits, by place.
    """

    tokens: Sequence[Sequence[int]]
    values: Sequence[Sequence[float]]

    @classmethod
    def read(cls, plain: dict[str, Any]) -> LabelBias:
        """As a file holds it. In files of earlier versions there is one list of each, which held at every place."""
        if plain["tokens"] and not isinstance(plain["tokens"][0], list):
            return cls([plain["tokens"]], [plain["values"]])
        return cls(plain["tokens"], plain["values"])

    @classmethod
    def fitted(cls, tokens: Sequence[Sequence[int]], heard: Sequence[Heard]) -> LabelBias:
        """The numbers with the least loss on what a model says.

        The loss is convex in the numbers; the same logits give the same numbers. At each place, rows are weighted as if
        each label had been seen `_PRIOR` times more. A token that no row has there gets the least number of the others.

        Args:
            tokens: as `label_tokens` gives them. heard: what the model says to batches of rows, with the same tokens.
        """
        rows = sum(part.rows for part in heard)
        values = []
        for place in zip(*(part.places for part in heard), strict=True):
            known, rest, goal = map(torch.cat, zip(*place, strict=True))
            values.append(_fitted(known, rest, goal, rows).tolist())
        return cls(tokens, values)

    def added_to(self, logits: Tensor, places: Tensor) -> Tensor:
        """Logits (positions x vocabulary) with the bias of each position's place in its answer."""
        columns, table = self._table
        here = table.to(logits)[places.clamp_max(len(table) - 1)]
        return logits.index_add(1, columns.to(logits.device), here)

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """All tokens, sorted, and their numbers (places x tokens), 0 for a token where no option has it."""
        columns = sorted({token for place in self.tokens for token in place})
        table = torch.zeros(len(self.tokens), len(columns))
        for row, tokens, values in zip(table, self.tokens, self.values, strict=True):
            row[[columns.index(token) for token in tokens]] = torch.tensor(values)
        return torch.tensor(columns), table


def _fitted(known: Tensor, rest: Tensor, goal: Tensor, rows: int) -> Tensor:
    """One number for each token of a place: those with the least weighted loss over ``rows`` answers."""
    tokens = known.shape[1]
    weights = _weights(goal, tokens, rows)
    values = torch.zeros(tokens, dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([values], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = cross_entropy(torch.cat([known + values, rest], 1), goal, reduction="none") @ weights
        found = found + _RIDGE * values.square().sum()
        found.backward()
        return found

    optimiser.step(loss)
    found = values.detach()
    seen = torch.bincount(goal, minlength=tokens) > 0
    if seen.any():  # a label that no row has is raised over all other words as its rivals are, by the least of theirs
        found[~seen] = found[seen].min()
    return found


def _weights(goal: Tensor, tokens: int, rows: int) -> Tensor:
    """A weight for each position: tokens that tell labels apart count as if each had been seen `_PRIOR` times more.

    A token of every answer (the end of text) weighs 1.
    """
    counts = torch.bincount(goal, minlength=tokens).double()
    telling = (counts > 0) & (counts < rows)
    scale = rows / (rows + _PRIOR * telling.sum())
    return torch.where(telling, (counts + _PRIOR) / counts.clamp_min(1) * scale, 1.0)[goal]
