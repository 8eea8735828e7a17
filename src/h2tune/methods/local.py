"""Local training: every client alone, with a plain LoRA of the same rank (Hu et al., arXiv 2106.09685, eq. 3).

    delta W = s B A,  A and B trained jointly, nothing is sent.

The baseline that a federation has to beat. It is TriLoRA with rho = 1 and T fixed at 0, which is LoRA exactly.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from h2tune.config import Experiment
from h2tune.errors import MethodError
from h2tune.methods.adapter_client import AdapterClient
from h2tune.methods.base import Method, ModelShape, OneExchange, PlannedBytes, Settings
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Reply


class LocalClient(AdapterClient):
    hosts = True
    protects_rows = True

    @classmethod
    def planned_bytes(cls, experiment: Experiment, settings: Any, shape: ModelShape) -> PlannedBytes:
        return PlannedBytes(0, 0)

    def join(self, fresh: bool = True) -> Payload:
        self.attach(self.context.rank, residual=True)
        if fresh:
            self.warm_head()
        for leaf in self.middles:
            leaf.requires_grad_(False)
        self.groups = {"adapter": self.group([*self.factors, *self.head], self.context.learning_rate, self.updates)}
        return Payload(meta=self.introduction())

    def train(self, round: int, payload: Payload) -> Payload:
        steps = self.steps - self.left_out
        self.train_groups([self.groups["adapter"]], self.context.batches(round), "local", steps=steps)
        self.finish_training()
        return Payload()


class LocalServer(OneExchange):
    """Answers, but shares nothing."""

    @classmethod
    def allows(cls, experiment: Experiment, settings: Any) -> None:
        # Nothing travels, so `wire` may say anything. A promise about what travels would be one about nothing.
        for key in ("privacy", "secure_aggregation"):
            if getattr(experiment, key) is not None:
                raise MethodError(f"{key}: `local` shares nothing, so there is nothing to protect: leave it out")

    def download(self, client: str) -> Payload:
        return Payload()

    def add(self, reply: Reply) -> None:
        return

    def finish_round(self) -> None:
        return

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        return


Method(
    "local",
    Settings,
    LocalClient,
    LocalServer,
    "every client alone, a LoRA of the same rank",
    source="Hu et al., arXiv 2106.09685",
    heading="alone",
)
