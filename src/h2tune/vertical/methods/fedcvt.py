"""FedCVT: the missing embeddings of unaligned rows are estimated by attention over aligned rows; classifiers that agree label them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from h2tune.utils.seeds import derive
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.encoder import make_encoder, make_prototypes
from h2tune.vertical.fuse import loss
from h2tune.vertical.methods.base import FASTER, PLAIN, Method, Pooled, Trained
from h2tune.vertical.methods.training import optimise, shares_of

SHARPNESS = 0.1  # temperature of the attention
SURE = 0.5  # least probability of a label that the classifiers agree on


class _Model(nn.Module):
    def __init__(self, config: VerticalConfig, data: Pooled) -> None:
        super().__init__()
        t, parties = config.training, len(data.x)
        self.encoders = nn.ModuleList(
            make_encoder(x.shape[1], t.hidden, t.dim, derive(config.seed, "fedcvt", k)) for k, x in enumerate(data.x)
        )
        self.views = make_prototypes(parties, data.classes, t.dim, derive(config.seed, "fedcvt views"))
        self.fused = make_prototypes(parties, data.classes, t.dim, derive(config.seed, "fedcvt top"))
        self.bias = nn.Parameter(torch.zeros(data.classes))

    def embed(self, x: list[Tensor]) -> list[Tensor]:
        return [encoder(rows) for encoder, rows in zip(self.encoders, x, strict=True)]

    def scores(self, z: list[Tensor]) -> Tensor:
        found: Tensor = sum((view @ top.T for view, top in zip(z, self.fused, strict=True)), self.bias)
        return found

    def completed(self, k: int, z: Tensor, aligned: list[Tensor], present: Tensor) -> list[Tensor]:
        """Embeddings of rows of party k at all parties, those elsewhere estimated from aligned rows alike."""
        near = F.normalize(z, dim=1) @ F.normalize(aligned[k], dim=1).T / SHARPNESS
        found = []
        for j, other in enumerate(aligned):
            both = present[:, k] & present[:, j]
            found.append(z if j == k else near.masked_fill(~both[None], -1e9).softmax(1) @ other)
        return found


def train(config: VerticalConfig, data: Pooled) -> Trained:
    """Train on aligned rows, own labelled rows and rows that the classifiers agree on; returns the test scores."""
    model = _Model(config, data)
    shares = shares_of(data.y, data.classes)
    steps = iter(range(config.rounds * config.training.steps))
    start = config.method.warmup * config.training.steps

    def step_loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        z = [view * data.present[rows, k, None] for k, view in enumerate(model.embed([x[rows] for x in data.x]))]
        value = loss(model.scores(z), data.y[rows], shares).mean()
        for k, view in enumerate(z):
            value = value + loss(view @ model.views[k].T, data.y[rows], shares).mean() / len(z)
        late = next(steps) >= start
        for k in range(len(z)):
            if len(data.free[k]) and late:
                value = value + _unaligned_loss(config, model, data, k, z, rows, shares, generator) / len(z)
        return value

    optimise(config, model.parameters(), config.rounds, step_loss, len(data.y), "fedcvt", config.training.average)

    def scores() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            z = [view * data.test_present[:, k, None] for k, view in enumerate(model.embed(data.test_x))]
            return model.scores(z), shares > 0

    return scores


def _unaligned_loss(config: VerticalConfig, model: _Model, data: Pooled, k: int, aligned: list[Tensor], rows: Tensor,
                    shares: Tensor, generator: torch.Generator) -> Tensor:  # fmt: skip
    chosen = torch.randperm(len(data.free[k]), generator=generator)[: config.training.batch]
    z = model.encoders[k](data.free[k][chosen])
    scores = model.scores(model.completed(k, z, aligned, data.present[rows]))
    view = z @ model.views[k].T
    labels = data.labels[k][chosen]
    with torch.no_grad():
        p, q = scores.masked_fill(shares <= 0, -1e9).softmax(1), view.masked_fill(shares <= 0, -1e9).softmax(1)
        sure = (p.argmax(1) == q.argmax(1)) & (p.amax(1) > SURE)
        own = (labels >= 0) & (shares[labels.clamp_min(0)] > 0)
        target = torch.where(own, labels, p.argmax(1))
    used = own | sure
    if not bool(used.any()):
        return torch.zeros(())
    present = shares_of(target[used], data.classes)
    return (loss(scores[used], target[used], present) + loss(view[used], target[used], present)).mean()


METHOD = Method(
    "fedcvt",
    "missing embeddings by attention over aligned rows; labels where classifiers agree",
    "Kang et al., ACM TIST 2022",
    train=train,
    tuned=(PLAIN, FASTER, {"training.learning_rate": 1e-3}, {"method.warmup": 30}),
)
