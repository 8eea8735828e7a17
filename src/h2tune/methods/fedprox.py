"""FedProx on LoRA factors (Li et al., arXiv 1812.06127, eq. 2; the mean as in FedIT).

    min_theta  CE(theta) + mu / 2 ||theta - theta_server||^2,   theta = (A, B)

The pull is towards the factors that the round began with.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from h2tune.methods.base import Method, Settings
from h2tune.methods.factors import FactorClient
from h2tune.methods.fedit import FedItServer
from h2tune.participant.batches import Batch
from h2tune.participant.trainer import Penalty


class FedProxSettings(Settings):
    mu: float = Field(0.01, ge=0, description="pull towards the server's factors")


class FedProxClient(FactorClient):
    settings: FedProxSettings

    def penalty(self) -> Penalty:
        start = [p.detach().clone() for p in self.factors]

        def pull(batch: Batch, logits: Tensor) -> Tensor:
            distances = [(p - s).square().sum() for p, s in zip(self.factors, start, strict=True)]
            return self.settings.mu / 2 * sum(distances[1:], distances[0])

        return pull


class FedProxServer(FedItServer):
    client = FedProxClient


Method(
    "fedprox",
    FedProxSettings,
    FedProxClient,
    FedProxServer,
    "FedIT with a pull towards the server's factors",
    source="Li et al., arXiv 1812.06127",
    one_architecture=True,
)
