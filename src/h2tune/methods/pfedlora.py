"""pFedLoRA: one small adapter of equal shape beside every model travels (Yi et al., arXiv 2310.13283).

    1. the received adapter frozen, the local model trained    2. the local model frozen, the adapter trained
    3. the adapter is sent;  adapter <- sum_k p_k adapter_k

**Reconstruction** for language models: the local model is the base with a private LoRA on all its maps. The adapter has to
read and write representations of different widths, which the paper's equal last layers spare it; here it is an R x R map T
between the private factors of the last block's last map, y += B (T + I) A x, so that A and B are the way in and out.
The mixing weight mu of the two outputs is 1.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from h2tune.config import Experiment
from h2tune.core.client_core import CoreShape
from h2tune.core.exact_sum import CoreSum
from h2tune.errors import ProtocolError
from h2tune.methods.adapter_client import AdapterClient
from h2tune.methods.base import Method, ModelShape, OneExchange, PlannedBytes, Sent, Settings
from h2tune.protocol.codec import Payload, expect
from h2tune.protocol.exchange import Reply


class PFedLoraSettings(Settings):
    adapter_part: float = Field(0.5, gt=0, lt=1, description="share of a round's updates that train the adapter")


class PFedLoraClient(AdapterClient):
    settings: PFedLoraSettings

    @classmethod
    def planned_bytes(cls, experiment: Experiment, settings: Any, shape: ModelShape) -> PlannedBytes:
        return PlannedBytes(4 * shape.rank**2, 4 * shape.rank**2)

    @classmethod
    def leaves(cls, experiment: Experiment | None, settings: Any) -> list[Sent]:
        return [Sent("train", ("adapter",), "one R x R matrix, the adapter that all clients share")]

    def join(self, fresh: bool = True) -> Payload:
        self.attach(self.adapter_rank, residual=True)
        if fresh:
            self.warm_head()
        for leaf in self.middles:
            leaf.requires_grad_(False)
        self.adapter = self.middles[-1]  # the last map of the last block; the last part of a fused one
        self.adapter_steps = min(max(1, round(self.settings.adapter_part * self.steps)), max(1, self.steps - 1))
        self.local_steps = max(1, self.steps - self.adapter_steps)
        context = self.context
        own, rate = [*self.factors, *self.head], context.training.core_learning_rate
        self.groups = {
            "local": self.group(own, context.learning_rate, context.rounds * self.local_steps),
            "adapter": self.group([self.adapter], rate, context.rounds * self.adapter_steps),
        }
        return Payload(meta=self.introduction())

    def train(self, round: int, payload: Payload) -> Payload:
        self.receive(payload)
        batches = self.context.batches(round)
        self.train_groups([self.groups["local"]], batches, "local", steps=self.local_steps)
        self.train_groups([self.groups["adapter"]], batches, "adapter", steps=self.adapter_steps)
        return Payload({"adapter": self.adapter.detach()[-1].clone()})

    def receive(self, payload: Payload) -> None:
        if payload.tensors:
            expect(payload, {"adapter": (self.adapter_rank, self.adapter_rank)}, "the server's answer")
            with torch.no_grad():
                self.adapter[-1].copy_(payload.tensors["adapter"])


class PFedLoraServer(OneExchange):
    def __init__(self, experiment: Experiment, settings: Any) -> None:
        super().__init__(experiment, settings)
        self.shape = CoreShape(1, experiment.rank, ("down",))
        self.adapter = self.shape.zeros()

    def download(self, client: str) -> Payload:
        return Payload({"adapter": self.adapter[0, 0]})

    def start_round(self, number: int, selected: list[str]) -> None:
        self.sum = CoreSum(self.adapter.shape)

    def add(self, reply: Reply) -> None:
        rank, payload = self.experiment.rank, reply.payload
        expect(payload, {"adapter": (rank, rank)}, f"the update of {reply.client}")
        if not payload.tensors["adapter"].is_floating_point():
            raise ProtocolError(f"the update of {reply.client} holds something other than numbers")
        whole = torch.ones(1, 1, rank, rank, dtype=torch.bool)
        self.sum.add(payload.tensors["adapter"][None, None], whole, self.weight(reply))

    def finish_round(self) -> None:
        self.adapter = self.sum.mean(self.adapter)

    def state(self) -> dict[str, Tensor]:
        return {"adapter": self.adapter}

    def load(self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor]) -> None:
        self.adapter = tensors["adapter"].clone()


Method(
    "pfedlora",
    PFedLoraSettings,
    PFedLoraClient,
    PFedLoraServer,
    "one small adapter of equal shape beside every model",
    source="Yi et al., arXiv 2310.13283 (reconstruction)",
)
