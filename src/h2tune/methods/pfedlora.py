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

from h2tune.core.client_core import CoreShape, CoreSum
from h2tune.methods.base import Method, OnStep, ServerMethod, Settings
from h2tune.participant.adapter_client import AdapterClient
from h2tune.protocol.codec import Payload, ProtocolError, expect


class PFedLoraSettings(Settings):
    adapter_part: float = Field(0.5, gt=0, lt=1, description="share of a round's updates that train the adapter")


class PFedLoraClient(AdapterClient):
    settings: PFedLoraSettings

    @classmethod
    def planned_bytes(cls, settings: Any, rank: int, maps: list[tuple[int, int, int]], blocks: int) -> int:
        return 4 * rank**2

    @property
    def adapter_rank(self) -> int:
        return self.client.rank

    def join(self, fresh: bool = True) -> Payload:
        self.attach(self.adapter_rank, residual=True)
        if fresh:
            self.warm_head()
        for leaf in self.leaves:
            leaf.requires_grad_(False)
        self.adapter = self.leaves[-1]  # the last map of the last block; the last part of a fused one
        steps = self.client.training.steps
        self.adapter_steps = min(max(1, round(self.settings.adapter_part * steps)), max(1, steps - 1))
        local = max(1, steps - self.adapter_steps)
        rounds, rate = self.client.rounds, self.client.training.core_learning_rate
        self.groups = {
            "local": self.group([*self.factors, *self.head], self.rate, rounds * local),
            "adapter": self.group([self.adapter], rate, rounds * self.adapter_steps),
        }
        return Payload(meta=self.introduction())

    def train(self, round: int, payload: Payload, on_step: OnStep) -> tuple[Payload, dict[str, float]]:
        self.receive(payload)
        batches, steps = self.batches(round), self.client.training.steps
        local = max(1, steps - self.adapter_steps)
        losses = {
            "local": self.steps(self.groups["local"], batches, "local", on_step, steps=local),
            "adapter": self.steps(self.groups["adapter"], batches, "adapter", on_step, steps=self.adapter_steps),
        }
        return Payload({"adapter": self.adapter.detach()[-1].clone()}), losses

    def receive(self, payload: Payload) -> None:
        if payload.tensors:
            expect(payload, {"adapter": (self.adapter_rank, self.adapter_rank)}, "the server's answer")
            with torch.no_grad():
                self.adapter[-1].copy_(payload.tensors["adapter"])


class PFedLoraServer(ServerMethod):
    def open(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        if not hasattr(self, "adapter"):
            self.shape = CoreShape(1, self.experiment.rank, ("down",))
            self.adapter = self.shape.zeros()
        return {name: Payload() for name in joined}

    def download(self, client: str) -> Payload:
        return Payload({"adapter": self.adapter[0, 0]})

    def start_round(self) -> None:
        self.sum = CoreSum(self.shape)

    def add(self, client: str, payload: Payload, weight: int) -> None:
        rank = self.experiment.rank
        expect(payload, {"adapter": (rank, rank)}, f"the update of {client}")
        if not payload.tensors["adapter"].is_floating_point():
            raise ProtocolError(f"the update of {client} holds something other than numbers")
        self.sum.add(payload.tensors["adapter"][None, None], torch.ones(1, 1, rank, rank, dtype=torch.bool), weight)

    def finish_round(self) -> None:
        self.adapter = self.sum.mean(self.adapter)

    def state(self) -> dict[str, Tensor]:
        return {"adapter": self.adapter}

    def resume(
        self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor], names: list[str]
    ) -> dict[str, Payload]:
        self.shape = CoreShape(1, self.experiment.rank, ("down",))
        self.adapter = tensors["adapter"].clone()
        return {name: Payload() for name in names}


Method(
    "pfedlora", PFedLoraSettings, PFedLoraClient, PFedLoraServer, "one small adapter of equal shape beside every model",
    sends="an R x R matrix", source="Yi et al., arXiv 2310.13283 (reconstruction)",
)  # fmt: skip
