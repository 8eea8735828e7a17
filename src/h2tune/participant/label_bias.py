"""The label bias: a client's own prior of its labels, fitted before anything is shared.

A model that knows the task may still prefer one label, or none of them. Gradients of two such models point apart, since
each corrects its own prior first. So every client whose rows all offer the same options fits one number for each token of
the options, added to the token's logit where an answer is read. It stays with the client.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from h2tune.tasks.example import Example
from h2tune.tasks.prompts import encode_options

LABEL_BIAS = "label_bias.json"  # the file that holds it beside an adapter
MOST = 64  # tokens of all options together; with more, the options are texts rather than labels
_RIDGE = 1e-2  # pull of each number towards 0, against the sum of the losses: keeps a certain label's finite
_PRIOR = 16  # rows that each label is counted for beforehand: a few rows say little about how frequent the labels are
_STEPS = 100


def label_tokens(examples: Sequence[Example], tokenizer: Any) -> list[int]:
    """Tokens of the options, where every row offers the same few; none otherwise."""
    first = examples[0]
    if not first.options or any(set(example.options) != set(first.options) for example in examples):
        return []
    rows = encode_options([first], tokenizer, max_length=1 << 30)[0]
    tokens = sorted({token for row in rows for token in row.labels if token != -100})
    return tokens if len(tokens) <= MOST else []


def telling_tokens(examples: Sequence[Example], tokenizer: Any) -> list[int]:
    """Of `label_tokens` those that tell the options apart: not every option has them, as it has the end of text."""
    if not (tokens := label_tokens(examples, tokenizer)):
        return []
    rows = encode_options([examples[0]], tokenizer, max_length=1 << 30)[0]
    return [token for token in tokens if not all(token in row.labels for row in rows)]


class LabelBias:
    """Numbers for some tokens.

    Args:
        tokens: ids, sorted. values: what is added to their logits.
    """

    def __init__(self, tokens: Sequence[int], values: Tensor | None = None) -> None:
        self.tokens = list(tokens)
        self.values = torch.zeros(len(self.tokens)) if values is None else values.float()

    def plain(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "values": self.values.tolist()}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> LabelBias:
        return cls([int(token) for token in plain["tokens"]], torch.tensor(plain["values"]))

    def added_to(self, logits: Tensor) -> Tensor:
        """Logits (positions x vocabulary) with the bias."""
        bias = torch.zeros(logits.shape[-1], dtype=logits.dtype, device=logits.device)
        bias[self.tokens] = self.values.to(bias)
        return logits + bias

    def fit(self, logits: Tensor, wanted: Tensor, rows: int) -> None:
        """Set the numbers to those with the least loss on a model's logits (positions x vocabulary).

        ``rows`` is the number of answers. The loss is convex in the numbers; the same logits give the same numbers. Rows are weighted as if each label had been seen
        `_PRIOR` times more.
        """
        logits = logits.detach().double().cpu()
        known, place = logits[:, self.tokens], {token: i for i, token in enumerate(self.tokens)}
        others = logits.clone()
        others[:, self.tokens] = -torch.inf
        rest = others.logsumexp(-1, keepdim=True)  # all other tokens as one
        goal = torch.tensor([place[int(token)] for token in wanted])
        weights = _weights(goal, len(self.tokens), rows)
        values = torch.zeros(len(self.tokens), dtype=torch.double, requires_grad=True)
        optimiser = torch.optim.LBFGS([values], max_iter=_STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            found = cross_entropy(torch.cat([known + values, rest], 1), goal, reduction="none") @ weights
            found = found + _RIDGE * values.square().sum()
            found.backward()
            return found

        optimiser.step(loss)
        self.values = values.detach().float()


def _weights(goal: Tensor, tokens: int, rows: int) -> Tensor:
    """A weight for each position: tokens that tell labels apart count as if each had been seen `_PRIOR` times more.

    A token of every answer (the end of text) weighs 1.
    """
    counts = torch.bincount(goal, minlength=tokens).double()
    telling = (counts > 0) & (counts < rows)
    scale = rows / (rows + _PRIOR * telling.sum())
    return torch.where(telling, (counts + _PRIOR) / counts.clamp_min(1) * scale, 1.0)[goal]
