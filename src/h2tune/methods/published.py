"""H2Tune as published (arXiv 2507.22633), made to run: no frames, T trained block by block, P applied both ways.

    adapter      y = W x + B (T + I) A x,  A random, B = 0          T[l, j] = C[l, j] * Theta[l, j]
    download     Theta[l, j] = sum_g P[g, l] S[g, j]                (and P is trained through it)
    upload       S'[g, j] = sum_l P[g, l] C[l, j] * Theta[l, j]
    aggregation  S <- mean of S' over the clients that cover an entry

A client keeps kappa^2 R^2 entries of every Theta by learned scores, positions kept (kappa is `keep`). The
regularisers of the released code (norms of M, T, P; divergence of T from its last value) are left out. The authors'
code can be no oracle: it never loads what the server sends and uploads what it had before training.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from h2tune.config import Experiment
from h2tune.core.client_core import ClientCore
from h2tune.methods.base import Method, Sent
from h2tune.methods.core_updates import leaves
from h2tune.methods.h2tune import H2TuneClient, H2TuneServer
from h2tune.methods.h2tune_settings import AlternatingSettings
from h2tune.protocol.codec import Payload


class PublishedSettings(AlternatingSettings):
    frames: Literal["random"] = Field("random", description="A random, B = 0")
    mask: Literal["entries"] = Field("entries", description="learned entries")
    private: Literal[0] = Field(0, description="the whole adapter has a residual")
    # What is trained here is Theta, and S is only received: what steers, pulls or chooses a trained S has nothing to act on.
    core_rule: Literal["adamw"] = Field("adamw", description="how Theta is stepped")
    ridge: Literal[0] = Field(0, description="no pull: S is not trained")
    proximal: Literal[0] = Field(0, description="no pull: S is not trained")
    accept: Literal["always"] = Field("always", description="Theta starts from the received S in every round")


class PublishedCore(ClientCore):
    """S as received, and D, what a client has learnt on top: ``Theta[l] = sum_g P[g, l] S[g] + D[l]``."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.S.requires_grad_(False)
        shape = (self.layout.depth, len(self.columns), self.rank, self.rank)
        self.D = nn.Parameter(torch.zeros(shape))
        if self.scores is not None:
            self.scores.M = nn.Parameter(0.01 + 1e-4 * torch.rand(shape))
            self.scores.kept = max(1, round(self.scores.kept**2 / self.rank**2))

    def theta(self) -> Tensor:
        """Theta before masking, L_i x slots_i x R x R."""
        return torch.einsum("gl,gjab->ljab", self.relation(), self.S[:, self.columns]) + self.D

    def middle(self) -> Tensor:
        return self.theta() if self.scores is None else self.scores(self.theta())

    def upload(self) -> tuple[Tensor, Tensor]:
        """S' and its coverage, L x slots x R x R."""
        with torch.no_grad():
            relation, kept = self.relation(), torch.ones_like(self.D, dtype=torch.bool)
            if self.scores is not None:
                kept = self.scores.mask()
            core = torch.zeros_like(self.S)
            core[:, self.columns] = torch.einsum("gl,ljab->gjab", relation, self.theta() * kept)
            held = torch.zeros(self.S.shape, dtype=torch.bool)
            reached = torch.einsum("gl,ljab->gjab", self.relation.support.float(), kept.float()) > 0
            held[:, self.columns] = reached.cpu()
        return core, held


class PublishedClient(H2TuneClient):
    hosts = False
    settings: PublishedSettings

    @classmethod
    def leaves(cls, experiment: Experiment | None, settings: Any) -> list[Sent]:
        return leaves(experiment, "the covered entries of S' = P T, and which they are")

    core: PublishedCore
    residual = True

    def make_core(self, relation: Tensor) -> PublishedCore:
        with self.context.generator("scores"):
            return PublishedCore(
                self.shape, self.context.layout, relation, self.context.keep, "entries", self.settings.train_relation
            )

    def receive(self, payload: Payload) -> None:
        super().receive(payload)
        with torch.no_grad():
            # What was learnt is in S by now, as far as P lets it through; but for entries that the server does not sum.
            support, reached = (
                self.core.relation.support.float().cpu(),
                self.sent.reached[:, self.core.columns].float(),
            )
            summed = torch.einsum("gl,gjab->ljab", support, reached) > 0
            self.core.D.masked_fill_(summed.to(self.core.D.device), 0)
        self.core.write(self.core_leaves)

    def upload(self) -> tuple[Tensor, Tensor]:
        return self.core.upload()


Method(
    "h2tune-published",
    PublishedSettings,
    PublishedClient,
    H2TuneServer,
    "H2Tune as published: random A, residual, T by block, no frames",
    source="Guo et al., arXiv 2507.22633",
)
