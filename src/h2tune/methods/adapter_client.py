"""The client's half of all methods that train a TriLoRA adapter."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import Any, ClassVar

from h2tune.methods.base import ClientMethod
from h2tune.participant.adapter_trainer import AdapterTrainer
from h2tune.participant.trainer import Update
from h2tune.protocol.codec import Payload


class AdapterClient(AdapterTrainer, ClientMethod):
    """A client with a TriLoRA adapter on all slots of its model.

    Attributes:
        hosts: whether its rounds leave room for updates of another method, and call `finish_training` (`h2tune.distill`).
        left_out: own updates that this round leaves out for them.
        addition: makes those updates.
        reads_public: whether it learns from public texts. public_texts: gives a round's, instead of its own choice.
        public_rows: numbers of the last round's texts that it may learn from; None is all.
    """

    hosts: ClassVar[bool] = False
    left_out: int = 0
    addition: Callable[[], None] | None = None
    reads_public: ClassVar[bool] = False
    public_texts: Callable[[int], list[str]] | None = None
    public_rows: Collection[int] | None = None

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

    @abstractmethod
    def train(self, round: int, payload: Payload) -> Payload:
        """A round: take what the server sent, make the own updates, send what is shared."""

    def finish_training(self) -> None:
        """After a round's own updates and before anything of it is sent."""
        if self.addition is not None:
            self.addition()

    def leave_out(self, phase: str, wanted: int) -> int:
        """Make room in the next round for updates of a phase; returns for how many, at most those wanted."""
        self.left_out = min(wanted, self.steps - 1)
        return self.left_out

    @classmethod
    def phases_of(cls, settings: Any) -> tuple[str, ...]:
        """Phases that may be given such updates, under the method's settings."""
        return ("specific",)

    def update_of(self, phase: str) -> Update:
        """What those updates train and what happens around their passes; the loss is the caller's."""
        group = self.groups["adapter"]
        return Update([group], before=lambda: self.select([group]))
