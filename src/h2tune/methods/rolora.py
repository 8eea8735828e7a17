"""RoLoRA: one factor is trained and averaged per round, in turns (Chen et al., arXiv 2409.02346, 2502.01755).

    odd rounds:   A frozen, B <- sum_k p_k B_k
    even rounds:  B frozen, A <- sum_k p_k A_k

The frozen factor is the same in all clients of a group, so that the mean of the products is exact in every round (but
for the first one of a client that trained alone until another with its base joined: nobody had its factors before).
B goes first: with B = 0 at the start, A has no gradient.
"""

from __future__ import annotations

from torch import Tensor

from h2tune.methods.base import Method, Settings
from h2tune.methods.factors import FactorClient, FactorServer, Pair, mean
from h2tune.protocol.codec import Payload


def turn(round: int) -> str:
    """The factor that is trained in a round, counted from 1."""
    return "B" if round % 2 else "A"


class RoLoraClient(FactorClient):
    hosts = False

    def make_groups(self) -> None:
        rounds, rate = range(1, self.context.rounds + 1), self.context.learning_rate
        for parameter in self.factors:
            parameter.requires_grad_(False)
        # The head, where there is one, learns with B.
        self.groups = {
            kind: self.group(
                [*self.factors_of((kind,)), *(self.head if kind == "B" else [])],
                rate,
                self.steps * sum(turn(r) == kind for r in rounds),
            )
            for kind in "BA"
        }

    def train(self, round: int, payload: Payload) -> Payload:
        self.take(payload)
        kind = turn(round)
        self.train_groups([self.groups[kind]], self.context.batches(round), kind)
        return Payload({k: t for k, t in self.pack().items() if k.endswith(kind)})


class RoLoraServer(FactorServer):
    client = RoLoraClient

    def shapes(self, client: str, rank: int) -> dict[str, tuple[int, ...]]:
        kind = turn(self.round)
        return {name: shape for name, shape in super().shapes(client, rank).items() if name.endswith(kind)}

    def combine(self, pairs: list[Pair], weights: list[float]) -> Pair:
        sent: list[list[Tensor]] = [[p[side] for p in pairs] for side in (0, 1)]
        return tuple(None if m[0] is None else mean(m, weights) for m in sent)  # type: ignore[return-value]


Method(
    "rolora",
    Settings,
    RoLoraClient,
    RoLoraServer,
    "A and B in turns, one a round",
    source="Chen et al., arXiv 2409.02346 and 2502.01755",
    one_architecture=True,
)
