"""A client's hold on the shared core: what it receives, sends, and keeps over a restart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from h2tune.aggregation.secure_mean import SecureClient
from h2tune.core.client_core import ClientCore, CoreShape
from h2tune.core.packing import unpack_core
from h2tune.methods.adapter_client import AdapterClient
from h2tune.methods.core_updates import CoreUpdates
from h2tune.participant.context import ClientContext
from h2tune.protocol.codec import Payload


class CoreClient(AdapterClient):
    """A client that shares a core.

    Attributes:
        shape: the shared core. core: this client's S, P and M. core_leaves: T of the maps that the core acts on.
        accepted: share of the received core in the one that was taken last; -1 is none.
        chosen: round of the last such choice; 0 is none yet.
    """

    version = 2  # in secure rounds clients commit to their secrets and to the shares of them
    actions: tuple[str, ...] = ("keys", "shares", "train", "unmask")  # all but `train` belong to secure aggregation
    shape: CoreShape
    accepted = 1.0
    chosen = 0

    def __init__(self, context: ClientContext, settings: Any) -> None:
        super().__init__(context, settings)
        self.secure = SecureClient(context.name, context.experiment.secure_threshold, context.rank)

    def take_core(self, core: ClientCore, acts_on: Collection[str]) -> None:
        """Hold a new core, which acts on these modules of every block."""
        experiment, layout = self.context.experiment, self.context.layout
        self.core = core.to(self.context.accelerator.device)
        places = [module for _ in range(layout.depth) for module in layout.modules]
        self.core_leaves: list[nn.Parameter] = [
            leaf for leaf, module in zip(self.middles, places, strict=True) if module in acts_on
        ]
        weight = len(self.context.data.train) if experiment.weights == "examples" else 1
        self.sent = CoreUpdates(experiment, self.secure, self.core.S, weight)
        self.core.write(self.core_leaves)

    def receive(self, payload: Payload) -> None:
        core, coverage = self._arrived(payload)
        own, self.accepted = self.core.S, 1.0
        with torch.no_grad():
            own.copy_(torch.where(coverage.to(own.device), core.to(own.device), own))
        self.core.write(self.core_leaves)

    def keep_own(self, payload: Payload) -> None:
        """Go on with the own core, whatever arrived."""
        self._arrived(payload)

    def _arrived(self, payload: Payload) -> tuple[Tensor, Tensor]:
        """The server's core and its coverage; what is sent next is told relative to it."""
        core, coverage = unpack_core(payload.tensors, self.shape, self.core.rank)
        self.sent.receive(core, coverage)
        return core, coverage

    def receive_what_fits(self, payload: Payload, among: Sequence[int]) -> None:
        """Take the own core, the received one, their mean or none, whichever has the least loss on validation rows.

        Args:
            among: tokens of the choice whose loss counts; none for the loss of whole answers.
        """
        own = self.core.S.detach().clone()
        self.receive(payload)
        self.chosen, received = self.context.round, self.core.S.detach().clone()
        if torch.equal(own, received):
            return
        self.choose({share: torch.lerp(own, received, share) for share in (1.0, 0.5, 0.0)}, among)

    def choose(self, choices: dict[float, Tensor], among: Sequence[int]) -> None:
        """Take the core that fits the validation rows best, or none.

        Args:
            choices: cores by the share of the received one in them. among: see `receive_what_fits`.
        """
        choices, losses = choices | {-1.0: torch.zeros_like(self.core.S)}, {}
        for share, core in choices.items():
            self._take(core)
            losses[share] = self.context.validation_loss(among)
        self.accepted = min(losses, key=lambda share: (losses[share], -share))
        self._take(choices[self.accepted])
        self.activate()

    def _take(self, core: Tensor) -> None:
        self.core.S.data.copy_(core)
        self.core.write(self.core_leaves)

    def pack(self) -> dict[str, Tensor]:
        """What is sent: the kept entries of S and their coverage, nothing else."""
        return self.sent.pack(*self.upload(), masked=self.core.scores is not None)

    def upload(self) -> tuple[Tensor, Tensor]:
        """S and its coverage."""
        return self.core.S, self.core.coverage

    # ---- secure aggregation (`h2tune.aggregation.secure_round`)

    def keys(self, round: int, payload: Payload) -> Payload:
        return self.secure.keys(self.context.run, round)

    def shares(self, round: int, payload: Payload) -> Payload:
        return self.secure.shares(payload)

    def unmask(self, round: int, payload: Payload) -> Payload:
        return self.secure.unmask(round, payload)

    # ---- what is kept over a restart, and shown

    def state(self) -> dict[str, Tensor]:
        core = {f"core.{k}": v.detach().clone() for k, v in self.core.state_dict().items()}
        choice = {"choice": torch.tensor([self.accepted, self.chosen])}
        return super().state() | core | self.sent.state() | choice

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.sent.load_state(state)
        if "choice" in state:  # states of earlier versions lack it
            self.accepted, self.chosen = float(state["choice"][0]), int(state["choice"][1])
        self.core.load_state_dict({k.removeprefix("core."): v for k, v in state.items() if k.startswith("core.")})
        self.core.write(self.core_leaves)
