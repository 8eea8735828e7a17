"""How likely a model finds whole reasoning paths, how fast it would learn them, and the loss that contrasts them.

    s(y)      = sum_t log p(y_t | x, y_<t), the end token included                     (joint probability of a path)
    n(y)      = -s / bytes, nats per UTF-8 byte: comparable between tokenizers
    rho(y)    = mean Brier score / mean cross-entropy of its tokens
    Delta(y)  = (s_theta(y) - s_theta0(y)) / bytes^gamma
    p = softmax_C(beta Delta),  q = softmax_C(t),  ell = KL(q || p)                    (`contrast`)

t is s_T / (tau bytes^gamma) on the teacher's paths, and their least less a margin M on the negatives. One positive and one
negative at M = inf is the pair loss -log sigma(beta (Delta+ - Delta-)) of Guo et al., arXiv 2602.18749 (as reported; the
listwise form is that of InfoNCA, arXiv 2402.05369). A finite M bounds the margin that is asked for by M / beta. Texts and
sums suffice: no tokens of two models are aligned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from h2tune.participant.batches import collate, scored_together, vocabulary
from h2tune.participant.passes import PLAIN, Passes
from h2tune.tasks.prompts import IGNORED, Encoded


@dataclass(frozen=True)
class PathScore:
    """A path under a model.

    Attributes:
        logp: s. tokens: tokens of the path with its end. brier: sum of ``|onehot - p|^2`` over them.
    """

    logp: float
    tokens: int
    brier: float

    @property
    def rho(self) -> float:
        """Relative speed at which its loss falls; 0 where there is nothing left to learn."""
        return self.brier / -self.logp if self.logp < 0 else 0.0


def rate_of_learning(p: Tensor) -> Tensor:
    """rho of one token of probability p where all other tokens are improbable: ``(1 - p)^2 / -log p``."""
    return (1 - p) ** 2 / -p.log()


@torch.no_grad()
def score_paths(model: Any, rows: Sequence[Encoded], pad: int, size: int, passes: Passes = PLAIN) -> list[PathScore]:
    """Score encoded questions with paths; sums are in float64, whatever the padding and the batch."""
    scores: list[PathScore] = [PathScore(0.0, 0, 0.0)] * len(rows)
    device = next(model.parameters()).device
    for picked in scored_together(rows, size, vocabulary(model)):
        batch = {k: v.to(device) for k, v in collate([rows[i] for i in picked], pad).items()}
        asked = batch["labels"][:, 1:] != IGNORED
        places = asked.nonzero()[:, 0]
        found = passes.answered(model, batch)
        logits = log_softmax(found.logits, -1)
        own = logits.gather(-1, found.wanted[:, None])[:, 0]
        brier = 1 - 2 * own.exp() + (2 * logits).exp().sum(-1)
        sums = torch.zeros(len(picked), 2, dtype=torch.float64, device=device)
        sums.index_add_(0, places, torch.stack([own, brier], 1).double())
        for place, (i, (logp, wrong)) in enumerate(zip(picked, sums.tolist(), strict=True)):
            scores[i] = PathScore(logp, int(asked[place].sum()), wrong)
    return scores


def path_sums(model: Any, batch: dict[str, Tensor], passes: Passes = PLAIN) -> Tensor:
    """s of every row of a batch, with gradients, in float32."""
    found = passes.answered(model, batch)
    own = -found.losses
    asked = batch["labels"][:, 1:] != IGNORED
    return torch.zeros(len(asked), device=own.device).index_add(0, asked.nonzero()[:, 0], own)


def targets(
    teacher: Sequence[float | None], sizes: Sequence[int], *, margin: float, tau: float, gamma: float
) -> Tensor:
    """q of a set of paths on one question.

    Args:
        teacher: s of each of the teacher's paths under the teacher, None for a negative. sizes: bytes of each path.

    Returns:
        A distribution over the paths, float64.
    """
    t = [
        None if s is None else (0.0 if math.isinf(tau) else s / (tau * size**gamma))
        for s, size in zip(teacher, sizes, strict=True)
    ]
    least = min(value for value in t if value is not None)
    return torch.tensor([least - margin if v is None else v for v in t], dtype=torch.float64).softmax(-1)


def contrast(delta: Tensor, q: Tensor, beta: float) -> Tensor:
    """KL(q || softmax(beta Delta)) over the paths of one question; its gradient in s is ``beta (p - q) / bytes^gamma``."""
    logp = log_softmax(beta * delta, -1)
    q = q.to(delta)
    held = torch.where(q > 0, q * q.clamp_min(1e-38).log(), torch.zeros_like(q)).sum()
    return held - torch.where(q > 0, q * logp, torch.zeros_like(q)).sum()
