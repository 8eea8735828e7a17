"""How much each party's view counts, class by class: by what it has seen of a class, or by a small network as well."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HALF = 5.0  # rows of a class at which a party's view of it has half its full weight
FLOOR = 1e-6
UNITS = 16


def coverage(counts: Tensor) -> Tensor:
    """Log weight of each party for each class (K x C) from the rows that it has seen of it (K x C)."""
    return (counts / (counts + HALF)).clamp_min(FLOOR).log()


def weights(scores: Tensor, prior: Tensor, present: Tensor) -> Tensor:
    """Gate weights (n x K x C): a softmax over the parties that are present.

    Args:
        scores: of each row and party (n x K).
        prior: log weights of parties and classes (K x C).
        present: who has the row (n x K, bool); at least one party of each row.
    """
    combined = (scores[:, :, None] + prior[None]).masked_fill(~present[:, :, None], -torch.inf)
    return combined.softmax(1)


class Gate(nn.Module):
    """Scores a party's view of a row from its embedding and how sure the view is.

    The last layer starts at zero: an untrained gate treats all parties alike.
    """

    def __init__(self, parties: int, dim: int) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(dim + 3, UNITS, bias=False) for _ in range(parties))
        self.outer = nn.Parameter(torch.zeros(parties, UNITS))

    def forward(self, z: list[Tensor], logits: Tensor) -> Tensor:
        """Scores (n x K) from embeddings (K of n x d) and view logits (n x K x C)."""
        p = logits.softmax(2)
        entropy = torch.special.entr(p).sum(2)
        sure = p.amax(2)
        found = []
        for k, (layer, embedding) in enumerate(zip(self.inner, z, strict=True)):
            features = [embedding, entropy[:, k, None], sure[:, k, None], embedding.norm(dim=1, keepdim=True)]
            found.append(torch.tanh(layer(torch.cat(features, 1))) @ self.outer[k])
        return torch.stack(found, 1)
