"""The client's half of all methods that train a TriLoRA adapter."""

from __future__ import annotations

from h2tune.methods.base import ClientMethod
from h2tune.participant.adapter_trainer import AdapterTrainer


class AdapterClient(AdapterTrainer, ClientMethod):
    """A client with a TriLoRA adapter on all slots of its model."""

    def check(self) -> None:
        self.check_rank()

    @property
    def steps(self) -> int:
        """Updates in a round."""
        return self.context.training.steps

    @property
    def updates(self) -> int:
        """Updates in the whole run."""
        return self.steps * self.context.rounds
