"""The shared core: the tensor S that is uploaded and averaged, and a client's hold on it.

S has shape depth x slots x R x R. Client i's block l, slot j uses (relation-based layer alignment, arXiv 2507.22633)

    T[l, j] = sum_g P[g, l] (C[g, j] * S[g, j])

S is the client's copy in global coordinates and is trained directly, so that what is uploaded is S itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from h2tune.core.masks import EntryScores, kept_rank
from h2tune.core.relation import Relation
from h2tune.core.slots import SLOTS, Layout

# The slots of a core whose matrices serve whatever slot a client has: one for tasks about a text, one for pairs of texts.
ANY = ("any", "pair")


@dataclass(frozen=True)
class CoreShape:
    """What all participants agree on: depth L, slots and rank R of the core."""

    depth: int
    rank: int
    slots: tuple[str, ...] = SLOTS

    @property
    def tied(self) -> bool:
        """Whether one matrix serves all slots of a client."""
        return set(self.slots) <= set(ANY)

    def zeros(self) -> Tensor:
        return torch.zeros(self.depth, len(self.slots), self.rank, self.rank)


class ClientCore(nn.Module):
    """S, P and M of one client.

    Args:
        shape: the shared core.
        layout: the client's slots; a slot that its family lacks is not covered.
        relation: start of P, L x L_i, columns summing to 1.
        keep: share kappa of the budget, in (0, 1].
        mask: ``"dims"`` keeps the leading round(keep * R) coordinates, ``"entries"`` a learned set of entries.
        train_relation: whether P is trained with S.
        tied: the slot of a tied core that all slots of this client read.
    """

    def __init__(
        self,
        shape: CoreShape,
        layout: Layout,
        relation: Tensor,
        keep: float = 1.0,
        mask: str = "dims",
        train_relation: bool = True,
        tied: str = ANY[0],
    ) -> None:
        super().__init__()
        self.shape, self.layout = shape, layout
        self.rank = kept_rank(keep, shape.rank) if mask == "dims" else shape.rank
        self.relation = Relation(relation, train_relation)
        self.columns = [shape.slots.index(tied if shape.tied else slot) for slot in layout.slots]
        self.S = nn.Parameter(shape.zeros()[:, :, : self.rank, : self.rank].clone())
        self.scores = EntryScores(self.S.shape, keep) if mask == "entries" and keep < 1 else None

    def middle(self) -> Tensor:
        """T for every block and covered slot, L_i x slots_i x r x r, differentiable in S, P and M."""
        kept = self.S if self.scores is None else self.scores(self.S)
        return torch.einsum("gl,gjab->ljab", self.relation(), kept[:, self.columns])

    @property
    def coverage(self) -> Tensor:
        """Entries of S that this client holds, as booleans of S's own (reduced) shape."""
        held = torch.zeros(self.S.shape, dtype=torch.bool)
        held[:, self.columns] = self.relation.covered[:, None, None, None].cpu()
        return held if self.scores is None else held & self.scores.mask().cpu()

    def write(self, leaves: list[nn.Parameter]) -> None:
        """Set the layers' T (one leaf per map, parts x r x r or larger, block by block) from S: their leading part."""
        with torch.no_grad():
            middle = self.middle()
            for leaf, (block, columns) in zip(leaves, self._places(), strict=True):
                leaf[..., : self.rank, : self.rank].copy_(middle[block, columns])

    def pull(self, leaves: list[nn.Parameter]) -> None:
        """Carry the gradients of the layers' T back to S, P and M by the chain rule."""
        middle = self.middle()
        gradient = torch.zeros_like(middle)
        for leaf, (block, columns) in zip(leaves, self._places(), strict=True):
            if leaf.grad is not None:
                gradient[block, columns] = leaf.grad[..., : self.rank, : self.rank].to(gradient)
                leaf.grad = None
        middle.backward(gradient)

    def _places(self) -> list[tuple[int, list[int]]]:
        """Block and columns of `middle` for each leaf, in the order of `Layout.modules`."""
        slots = list(self.layout.slots)
        per_module = [
            [slots.index(s) for s, ref in sorted(self.layout.slots.items(), key=lambda item: item[1].part)
             if ref.module == module]
            for module in self.layout.modules
        ]  # fmt: skip
        return [(block, columns) for block in range(self.layout.depth) for columns in per_module]
