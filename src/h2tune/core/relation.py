"""The layer relation matrix P: how the blocks of a model read the depths of the shared core."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def depth_relation(depth: int, blocks: int) -> Tensor:
    """Relation by relative depth, L x L_i, columns sum to 1: a block between two depths has a share of both."""
    relation = torch.zeros(depth, blocks)
    steps = blocks - 1 if blocks > 1 else 2
    for block in range(blocks):
        # In whole numbers: a place that is off by rounding would read a second depth. A lone block reads the middle.
        low, rest = divmod((block if blocks > 1 else 1) * (depth - 1), steps)
        relation[low, block] = 1 - rest / steps
        if rest:
            relation[low + 1, block] = rest / steps
    return relation


def nearest_relation(depth: int, blocks: int) -> Tensor:
    """One depth for each block, the nearest."""
    relation = depth_relation(depth, blocks)
    return torch.nn.functional.one_hot(relation.argmax(0), depth).T.to(relation.dtype)


class Relation(nn.Module):
    """P as trainable logits; the softmax down each column runs over the support that P started with.

    A column without support is 0: that block reads nothing.
    """

    support: Tensor

    def __init__(self, start: Tensor, trainable: bool = True) -> None:
        super().__init__()
        self.register_buffer("support", start > 0)
        self.logits = nn.Parameter(start.clamp_min(1e-6).log(), requires_grad=trainable)

    def forward(self) -> Tensor:
        # A low number instead of minus infinity: a column of nothing but -inf has no softmax, and no gradient.
        return torch.softmax(self.logits.masked_fill(~self.support, -1e9), dim=0) * self.support

    @property
    def covered(self) -> Tensor:
        """Which depths some block reads, L booleans."""
        return self.support.any(dim=1)
