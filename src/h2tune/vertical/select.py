"""Which unaligned rows a party trains on: the cheapest of each predicted class, and only where both prototypes agree."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST, LAST, RAMP = 0.2, 0.8, 30  # share of rows at the start, at the end, and the rounds between


def kept_share(round: int, start: int) -> float:
    """Share of each predicted class that is kept in a round."""
    return min(LAST, FIRST + (LAST - FIRST) * (round - start) / RAMP)


def cheapest(cost: Tensor, predicted: Tensor, share: float) -> Tensor:
    """The cheapest share of each predicted class, at least one row of each (n, bool); ties go to the earlier row."""
    keep = torch.zeros(len(cost), dtype=torch.bool)
    order = torch.argsort(cost, stable=True)
    for label in sorted(set(predicted.tolist())):
        rows = order[predicted[order] == label]
        keep[rows[: max(1, round(share * len(rows)))]] = True
    return keep


def soft_weights(cost: Tensor, share: float, temperature: float = 0.1) -> Tensor:
    """A smooth weight in (0, 1) for each row (n) in place of a cut: 1/2 at the given quantile of the costs."""
    return torch.sigmoid((torch.quantile(cost, share) - cost) / temperature)


def agreement(logits: Tensor, h: Tensor, mu: Tensor) -> Tensor:
    """Rows for which the top layer and the nearest mean name the same class (n, bool).

    Args:
        logits: of the classes that may be predicted; -inf for others (n x C).
        h: unit embeddings (n x d).
        mu: unit means (C x d); a zero row is no prototype.
    """
    near = (h @ mu.T).masked_fill(mu.norm(dim=1) == 0, -torch.inf)
    return near.argmax(1) == logits.argmax(1)
