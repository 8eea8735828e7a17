"""H2Tune without its exchange: the same frames, phases and updates, and every client keeps its own core.

Beside H2Tune it shows what averaging alone is worth; so it may leave its core out where validation rows say so, too.
"""

from __future__ import annotations

from typing import Any

from h2tune.config import Experiment
from h2tune.errors import MethodError
from h2tune.frames.registry import kind_of
from h2tune.methods.base import Method, ModelShape, PlannedBytes, Sent
from h2tune.methods.h2tune import H2TuneClient, H2TuneServer
from h2tune.methods.h2tune_settings import H2TuneSettings
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Ask, Reply


class UnsharedClient(H2TuneClient):
    actions = ("train",)

    @classmethod
    def leaves(cls, experiment: Experiment | None, settings: Any) -> list[Sent]:
        return kind_of(settings.frames).leaves(settings)

    @classmethod
    def planned_bytes(cls, experiment: Experiment, settings: Any, shape: ModelShape) -> PlannedBytes:
        return PlannedBytes(0, 0, *kind_of(settings.frames).setup_bytes(experiment, settings, shape))

    def receive(self, payload: Payload) -> None:
        return

    def download(self, round: int, payload: Payload) -> None:
        """As H2Tune chooses, without what others know: the own core or none."""
        own = self.core.S.detach().clone()
        if self.chooses and self.has_learnt(round) and own.any():
            self.chosen = round
            self.choose({0.0: own}, self.listens)

    def pack(self) -> dict[str, Any]:
        return {}


class UnsharedServer(H2TuneServer):
    @classmethod
    def allows(cls, experiment: Experiment, settings: Any) -> None:
        for key in ("privacy", "secure_aggregation"):
            if getattr(experiment, key) is not None:
                raise MethodError(
                    f"{key}: this method shares nothing, so there is nothing to protect; leave {key} out"
                )

    def download(self, client: str) -> Payload:
        return Payload()

    def run_round(self, ask: Ask, number: int, selected: list[str]) -> None:
        ask("train", dict.fromkeys(selected, Payload()))

    def add(self, reply: Reply) -> None:
        return


Method(
    "h2tune-unshared",
    H2TuneSettings,
    UnsharedClient,
    UnsharedServer,
    "the same frames and phases, never averaged",
    source="Guo et al., arXiv 2507.22633; the frames are this project's",
    variant_of="h2tune",
    averages=False,
    heading="not averaged",
)
