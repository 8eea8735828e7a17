"""HetLoRA: different ranks, zero-padded, weighted by their norms, truncated (Cho et al., arXiv 2401.06432).

    w_k = ||B_k A_k||_F / sum_j ||B_j A_j||_F,   A <- sum_k w_k pad(A_k),   B <- sum_k w_k pad(B_k)
    client k receives the first r_k rows of A and columns of B
    self-pruning:  CE + lambda ||B_k[:, m:]|| ||A_k[m:]||,  m = gamma r_k;  the tail is dropped once its product shrank

The weights are those of each map. (Read in two re-implementations, not in the paper.)
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from h2tune.methods.base import Method, Settings
from h2tune.methods.factors import FactorClient, FactorServer, Pair
from h2tune.participant.batches import Batch
from h2tune.participant.trainer import Penalty, with_penalty
from h2tune.protocol.codec import Payload


class HetLoraSettings(Settings):
    prune: float = Field(0.0, ge=0, description="lambda of self-pruning; 0 leaves ranks as they are")
    gamma: float = Field(0.99, gt=0, le=1, description="share of the rank that pruning spares")


class HetLoraClient(FactorClient):
    hosts = False
    settings: HetLoraSettings
    any_rank = True

    def make_groups(self) -> None:
        super().make_groups()
        self.ranks = torch.full((len(self.layers),), self.adapter_rank)  # what self-pruning has left of each map

    def _tails(self) -> list[Tensor]:
        """||B[:, m:]|| ||A[m:]|| of every map, m = gamma r."""
        name = self.context.adapter
        cuts = [int(self.settings.gamma * r) for r in self.ranks.tolist()]
        return [layer.trilora_B[name][:, m:].norm() * layer.trilora_A[name][m:].norm()
                for layer, m in zip(self.layers, cuts, strict=True)]  # fmt: skip

    def penalty(self) -> Penalty | None:
        if not self.settings.prune:
            return None

        def push(batch: Batch, logits: Tensor) -> Tensor:
            return self.settings.prune * torch.stack(self._tails()).sum()

        return push

    def receive(self, payload: Payload) -> None:
        super().receive(payload)
        self._cut()

    def train(self, round: int, payload: Payload) -> Payload:
        self.take(payload)
        penalty, before = self.penalty(), [float(t.detach()) for t in self._tails()]
        batches = self.context.batches(round)
        self.train_groups([self.groups["adapter"]], batches, "local", with_penalty(penalty))
        if penalty is not None:
            for index, (old, new) in enumerate(zip(before, self._tails(), strict=True)):
                if float(new.detach()) < old:
                    self.ranks[index] = max(1, int(self.settings.gamma * int(self.ranks[index])))
        self._cut()
        return Payload(self.pack())

    def _cut(self) -> None:
        """What was pruned stays 0, whatever the server's mean or the optimiser's momentum say."""
        with torch.no_grad():
            for layer, rank in zip(self.layers, self.ranks.tolist(), strict=True):
                layer.trilora_A[self.context.adapter][rank:] = 0
                layer.trilora_B[self.context.adapter][:, rank:] = 0

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"ranks": self.ranks.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.ranks = state["ranks"].clone()


class HetLoraServer(FactorServer):
    client = HetLoraClient

    def combine(self, pairs: list[Pair], weights: list[float]) -> Pair:
        rank = self.experiment.rank
        norms = torch.stack([(b.double() @ a.double()).norm() for a, b in pairs])
        # Before anybody has learnt anything all products are 0.
        w = norms / norms.sum() if norms.sum() > 0 else torch.tensor(weights, dtype=torch.float64)
        a = sum(wk * pad(a.double(), (0, 0, 0, rank - a.shape[0])) for wk, (a, _) in zip(w, pairs, strict=True))
        b = sum(wk * pad(b.double(), (0, rank - b.shape[1])) for wk, (_, b) in zip(w, pairs, strict=True))
        return a.to(pairs[0][0].dtype), b.to(pairs[0][1].dtype)


Method(
    "hetlora",
    HetLoraSettings,
    HetLoraClient,
    HetLoraServer,
    "zero-padded factors, weighted by their norms",
    source="Cho et al., arXiv 2401.06432 (from re-implementations)",
    one_architecture=True,
)
