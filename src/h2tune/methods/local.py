"""Local training: every client alone, with a plain LoRA of the same rank (Hu et al., arXiv 2106.09685, eq. 3).

    delta W = s B A,  A and B trained jointly, nothing is sent.

The baseline that a federation has to beat. It is TriLoRA with rho = 1 and T fixed at 0, which is LoRA exactly.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from h2tune.methods.base import Method, OnStep, ServerMethod, Settings
from h2tune.participant.adapter_client import AdapterClient
from h2tune.protocol.codec import Payload


class LocalClient(AdapterClient):
    @classmethod
    def planned_bytes(cls, settings: Any, rank: int, maps: list[tuple[int, int, int]], blocks: int) -> int:
        return 0

    def join(self, fresh: bool = True) -> Payload:
        self.attach(self.client.rank, residual=True)
        if fresh:
            self.warm_head()
        for leaf in self.leaves:
            leaf.requires_grad_(False)
        updates = self.client.training.steps * self.client.rounds
        self.groups = {"adapter": self.group([*self.factors, *self.head], self.rate, updates)}
        return Payload(meta=self.introduction())

    def train(self, round: int, payload: Payload, on_step: OnStep) -> tuple[Payload, dict[str, float]]:
        return Payload(), {"local": self.steps(self.groups["adapter"], self.batches(round), "local", on_step)}


class LocalServer(ServerMethod):
    """Answers, but shares nothing."""

    @classmethod
    def allows(cls, experiment: Any, settings: Any) -> None:
        return  # nothing travels: however it is asked to travel, all is well

    def open(self, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        return {name: Payload() for name in joined}

    def download(self, client: str) -> Payload:
        return Payload()

    def start_round(self) -> None:
        return

    def add(self, client: str, payload: Payload, weight: int) -> None:
        return

    def finish_round(self) -> None:
        return

    def state(self) -> dict[str, Tensor]:
        return {}

    def resume(
        self, tensors: dict[str, Tensor], plain: dict[str, Any], fixed: dict[str, Tensor], names: list[str]
    ) -> dict[str, Payload]:
        return {name: Payload() for name in names}


Method(
    "local", Settings, LocalClient, LocalServer, "every client alone, a LoRA of the same rank",
    source="Hu et al., arXiv 2106.09685",
)  # fmt: skip
