"""The client's half of a core's way to the server.

A client sends S itself, or, where ``wire`` asks for smaller messages, the update S_i - S in the code of
`h2tune.core.compress`, with what the code lost in earlier rounds added; where ``privacy`` is asked for the update is
clipped before; under secure aggregation all that leaves is masked, and holds only entries that the server has sent: those
that enough clients cover.
"""

from __future__ import annotations

import torch
from torch import Tensor

from h2tune.aggregation.private import clipped
from h2tune.aggregation.secure_mean import SecureClient
from h2tune.config import Experiment
from h2tune.core.compress import encode_update
from h2tune.core.packing import pack_core
from h2tune.methods.base import Sent
from h2tune.methods.core_server import code_of


class CoreUpdates:
    """What is sent for a trained S.

    Args:
        core: S, L x slots x r x r.
        weight: of this client in a secure sum.
    """

    def __init__(self, experiment: Experiment, secure: SecureClient, core: Tensor, weight: int) -> None:
        self.code, self.secure, self.weight = code_of(experiment), secure, weight
        self.clip = experiment.privacy.clip if experiment.privacy else None
        self.received, self.lost = torch.zeros(core.shape), torch.zeros(core.shape)
        self.reached = torch.zeros(core.shape, dtype=torch.bool)

    def receive(self, core: Tensor, coverage: Tensor) -> None:
        """Remember the server's S as it arrived, and of which entries it has one: updates start there."""
        self.received, self.reached = core.detach().cpu().clone(), coverage.cpu()

    def pack(self, core: Tensor, coverage: Tensor, *, masked: bool) -> dict[str, Tensor]:
        """Tensors to send; once per round, since what the code loses is remembered."""
        if self.secure.agreed:
            return self.secure.mask(core, coverage.cpu() & self.reached, self.weight)
        if self.code is None:
            return pack_core(core, coverage, masked=masked)
        update = core.detach().cpu() - self.received + self.lost
        if self.clip is not None:
            update = clipped(update, coverage, self.clip)  # what is cut off is not remembered: it would pile up
        tensors, decoded = encode_update(update, coverage, self.code, masked=masked)
        self.lost = torch.where(coverage, update - decoded, self.lost)
        return tensors

    def state(self) -> dict[str, Tensor]:
        """What a restart needs: private, as S is before it is sent."""
        return {} if self.code is None or self.code.lossless else {"wire.lost": self.lost.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        self.lost = state.get("wire.lost", self.lost).clone()


def leaves(experiment: Experiment | None, what: str) -> list[Sent]:
    """How a core leaves a client: open, or under masks of which only the sum can be taken off."""
    if experiment is None or experiment.secure_threshold is None:
        return [Sent("train", ("values", "pairs", "mask", "scales", "sent", "indices"), what)]
    return [
        Sent(
            "keys",
            ("mask", "channel", "own"),
            "fresh public keys for secure aggregation, and a commitment to a fresh secret",
        ),
        Sent(
            "shares",
            ("shares",),
            "shares of this client's secrets, encrypted to the other clients, and commitments to them",
        ),
        Sent("train", ("masked",), f"{what}, under masks: the server can read only the sum over the clients"),
        Sent("unmask", ("shares",), "shares that take the masks off the sum, and off nothing else"),
    ]
