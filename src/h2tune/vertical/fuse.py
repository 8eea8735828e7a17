"""From the parties' views of a row to class scores, and the losses on them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NEVER = -1e9  # in place of log 0: keeps a class out of a softmax without making gradients that are not numbers


def view_logits(z: list[Tensor], nu: Tensor) -> Tensor:
    """Each party's class scores (n x K x C) from embeddings (K of n x d) and prototypes (K x C x d)."""
    return torch.stack([embedding @ nu[k].T for k, embedding in enumerate(z)], 1)


def fused(logits: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
    """Class scores (n x C): K times the gated sum of view logits (n x K x C), and a bias (C)."""
    return logits.shape[1] * (gate * logits).sum(1) + bias


def averaged(logits: Tensor, knows: Tensor, present: Tensor) -> Tensor:
    """Log of the mean class probability (n x C) over the parties that know a class and have the row.

    Args:
        logits: view logits (n x K x C).
        knows: which party knows which class (K x C, bool).
        present: who has the row (n x K, bool).
    """
    p = logits.masked_fill(~knows[None], NEVER).softmax(2)
    counted = (present[:, :, None] & knows[None]).float()
    return ((p * counted).sum(1) / counted.sum(1).clamp_min(1)).clamp_min(1e-12).log()


def log_shares(shares: Tensor) -> Tensor:
    """Log class shares (C) for a loss; a class of no share is left out of the softmax."""
    return torch.where(shares > 0, shares.clamp_min(1e-30).log(), NEVER)


def loss(logits: Tensor, target: Tensor, shares: Tensor, flip: Tensor | None = None) -> Tensor:
    """Cross-entropy of each row (n) with the class shares of the training rows added to the scores.

    Scores that were trained so are right for classes of equal shares (Menon et al., ICLR 2021).

    Args:
        target: class numbers (n) or class probabilities (n x C).
        shares: class shares of the rows that are trained on (C).
        flip: chance that a label of class i was reported as class j (C x C); corrects the loss for it.
    """
    log_p = (logits + log_shares(shares)).log_softmax(1)
    if flip is not None:
        log_p = (log_p.exp() @ flip).clamp_min(1e-30).log()
    if target.dim() == 1:
        return F.nll_loss(log_p, target, reduction="none")
    return -(target * log_p).sum(1)


def predict(scores: Tensor, possible: Tensor) -> Tensor:
    """The best class (n) among the possible ones (C, or n x C, bool)."""
    return scores.masked_fill(~possible, -torch.inf).argmax(1)
