"""FedHSSL: self-supervised encoders across parties and inside each, then a linear layer on aligned rows.

Each party has a cross-party and a local encoder. The first learns to predict the other parties' embeddings of the same
person; the second agrees with itself on corrupted copies of any row (SimSiam) and is tied to the first. Both are then
fine-tuned with the labels. Embeddings of unaligned rows stay with their party.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from h2tune.utils.seeds import derive
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.encoder import corrupt, make_encoder
from h2tune.vertical.fuse import loss
from h2tune.vertical.methods.base import FASTER, PLAIN, Method, Pooled, Trained
from h2tune.vertical.methods.training import optimise, shares_of, unlike

PRETRAINING = 0.5  # share of the rounds


@dataclass
class _Party:
    cross: nn.Sequential
    local: nn.Sequential
    cross_head: nn.Sequential
    local_head: nn.Sequential
    rows: Tensor

    def modules(self) -> list[nn.Module]:
        return [self.cross, self.local, self.cross_head, self.local_head]


def _party(config: VerticalConfig, k: int, rows: Tensor) -> _Party:
    t = config.training

    def network(part: str, width: int) -> nn.Sequential:
        return make_encoder(width, t.hidden, t.dim, derive(config.seed, "fedhssl", part, k))

    encoders = [network(part, rows.shape[1]) for part in ("cross", "local")]
    heads = [network(part, t.dim) for part in ("cross head", "local head")]
    return _Party(encoders[0], encoders[1], heads[0], heads[1], rows)


def train(config: VerticalConfig, data: Pooled) -> Trained:
    """Pretrain, fine-tune; returns the scores of the test people."""
    parties = [
        _party(config, k, torch.cat([x, free])) for k, (x, free) in enumerate(zip(data.x, data.free, strict=True))
    ]
    pretraining = round(PRETRAINING * config.rounds)
    parameters = [p for party in parties for module in party.modules() for p in module.parameters()]
    optimise(config, parameters, pretraining, lambda rows, g: _pretraining_loss(config, parties, data, rows, g),
             len(data.y), "pretraining")  # fmt: skip
    top = nn.Linear(2 * config.training.dim * len(parties), data.classes)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(derive(config.seed, "fedhssl top"))
        top.weight.copy_((2 * torch.rand(top.weight.shape, generator=generator) - 1) / top.in_features**0.5)
        top.bias.zero_()
    shares = shares_of(data.y, data.classes)

    def supervised(rows: Tensor, generator: torch.Generator) -> Tensor:
        z = _views(parties, [x[rows] for x in data.x], data.present[rows])
        return loss(top(z), data.y[rows], shares).mean()

    encoders = [p for party in parties for m in (party.cross, party.local) for p in m.parameters()]
    optimise(
        config,
        [*encoders, *top.parameters()],
        config.rounds - pretraining,
        supervised,
        len(data.y),
        "tuning",
        config.training.average,
    )

    def scores() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return top(_views(parties, data.test_x, data.test_present)), shares > 0

    return scores


def _views(parties: list[_Party], x: list[Tensor], present: Tensor) -> Tensor:
    found = []
    for k, (party, rows) in enumerate(zip(parties, x, strict=True)):
        found.append(torch.cat([party.cross(rows), party.local(rows)], 1) * present[:, k, None])
    return torch.cat(found, 1)


def _pretraining_loss(
    config: VerticalConfig, parties: list[_Party], data: Pooled, rows: Tensor, generator: torch.Generator
) -> Tensor:
    value = torch.zeros(())
    z = [party.cross(x[rows]) for party, x in zip(parties, data.x, strict=True)]
    for k, party in enumerate(parties):
        others = [j for j in range(len(parties)) if j != k]
        for j in others:
            both = data.present[rows, k] & data.present[rows, j]
            value = value + unlike(party.cross_head(z[k][both]), z[j][both]) / len(others)
        own = party.rows[torch.randint(len(party.rows), (config.training.batch,), generator=generator)]
        first, second = (corrupt(own, party.rows, config.training.corrupt, generator) for _ in range(2))
        a, b = party.local(first), party.local(second)
        heads = party.local_head(a), party.local_head(b)
        value = value + 0.25 * (unlike(heads[0], b) + unlike(heads[1], a))
        value = value + 0.25 * (unlike(heads[0], party.cross(first)) + unlike(heads[1], party.cross(second)))
    return value


METHOD = Method(
    "fedhssl",
    "self-supervised across parties and inside each, then a linear layer on aligned rows",
    "He et al., IEEE TBD 2024",
    train=train,
    tuned=(PLAIN, FASTER, {"training.learning_rate": 1e-3}, {"training.corrupt": 0.4}),
)
