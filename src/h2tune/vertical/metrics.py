"""How well classes are told apart, counting every class alike or every row alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from h2tune.utils.numbers import number


def score(found: Tensor, labels: Tensor, unseen: list[int]) -> dict[str, Any]:
    """Accuracy, balanced accuracy and, with unseen classes, how often those and the others are right.

    Args:
        found: predicted classes (n).
        labels: true classes (n); rows below 0 are left out.
        unseen: classes that the active party has no row of.
    """
    found, labels = found[labels >= 0], labels[labels >= 0]
    if not len(labels):
        return {}
    right = found == labels
    recalls = {int(c): float(right[labels == c].float().mean()) for c in sorted(set(labels.tolist()))}
    result: dict[str, Any] = {
        "accuracy": float(right.float().mean()),
        "balanced": sum(recalls.values()) / len(recalls),
        "recalls": {str(c): value for c, value in recalls.items()},
    }
    if rows := [c for c in unseen if c in recalls]:
        new = torch.isin(labels, torch.tensor(rows))
        u, s = float(right[new].float().mean()), float(right[~new].float().mean())
        result |= {"unseen": u, "seen": s, "harmonic": 2 * u * s / (u + s) if u + s else 0.0}
    return result


def confusion(found: Tensor, labels: Tensor, classes: int) -> list[list[int]]:
    """Rows of each true class (first index) and predicted class."""
    pairs = labels * classes + found
    return torch.bincount(pairs[labels >= 0], minlength=classes**2).reshape(classes, classes).tolist()


def answers(
    p: Tensor, present: Tensor, ids: list[str], classes: list[str], parties: list[str]
) -> list[dict[str, Any]]:
    """Predictions as plain values, one a person: `id`, `class`, `probabilities`, and the `parties` that know it.

    Args:
        p: class probabilities (n x C).
        present: who has the row (n x K, bool).
    """
    best, rows, here = p.argmax(1).tolist(), p.tolist(), present.tolist()
    return [
        {
            "id": identity,
            "class": classes[best[row]],
            "probabilities": {name: number(round(value, 6)) for name, value in zip(classes, rows[row], strict=True)},
            "parties": [name for name, known in zip(parties, here[row], strict=True) if known],
        }
        for row, identity in enumerate(ids)
    ]
