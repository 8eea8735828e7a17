"""Sparsification by budget: which entries of the core a client keeps.

A kept position means the same for everyone: entry (a, b) of S[g, j] stays entry (a, b).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def kept_rank(keep: float, rank: int) -> int:
    """Leading coordinates that a budget of ``keep`` leaves of ``rank``: at least one."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep must lie in (0, 1], got {keep}.")
    return max(1, round(keep * rank))


class EntryScores(nn.Module):
    """Learned scores M behind a mask over entries: the top ``keep`` of |M| in every r x r matrix are kept.

    Straight-through: the forward value is ``C * S``; with G the gradient before masking, dS = C * G, dM = G * S.
    """

    def __init__(self, shape: torch.Size, keep: float) -> None:
        super().__init__()
        rank = shape[-1]
        self.kept = max(1, round(keep * rank * rank))
        # Frames order coordinates by agreement, so that before anything is learned the leading ones count most,
        # for all clients alike: clients that kept different entries by chance would share little.
        order = torch.arange(rank)
        start = 1.0 / (1.0 + torch.maximum(order[:, None], order[None]) + 0.5 * (order[:, None] + order[None]) / rank)
        self.M = nn.Parameter(0.01 * start.expand(shape).clone())

    def mask(self) -> Tensor:
        flat = self.M.detach().abs().flatten(-2)
        chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, flat.topk(self.kept, dim=-1).indices, True)
        return chosen.view_as(self.M)

    def forward(self, core: Tensor) -> Tensor:
        return core * self.mask() + core.detach() * (self.M - self.M.detach())
