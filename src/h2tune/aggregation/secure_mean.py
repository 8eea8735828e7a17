"""Secure aggregation of cores: what a client sends, and the mean that follows from the revealed sum.

A client sends w_i S_i as whole numbers under masks, over all entries of the core: zeros where it covers nothing, so that
every vector has one length. Which entries a client covers, and its weight, the server knows anyway; from them and the
revealed sum follows the mean ``sum w C S / sum w C``. C holds only entries that `LEAST` clients of the round cover: of
others the sum would say what one or two hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from h2tune.aggregation.base import Aggregator, Decode
from h2tune.aggregation.secret_sharing import (
    STEP_BITS,
    ClientSecrets,
    MaskedSum,
    Publics,
    SecureError,
    Shares,
    context_of,
    from_steps,
    to_steps,
)
from h2tune.aggregation.secure_round import SecureAsk
from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Ask

LEAST = 3  # clients of a sum: of two each knows the other's part from it
LARGEST_MEAN = 1e5  # of an entry: cores have entries near 1
# A sum that was revealed with false shares fills its range evenly: nearly every time some entry lies above a sixteenth of it.
LARGEST_SUM = 2.0 ** (63 - STEP_BITS) / 16


class SecureMean(Aggregator):
    """The mean of updates of which the server learns only the sum."""

    def __init__(self, decode: Decode, threshold: int) -> None:
        super().__init__(decode)
        self.threshold = threshold

    def start(self, before: Tensor, covers: Mapping[str, Tensor]) -> None:
        self.before, self.covers, self.mean = before, covers, before
        self.weight = torch.zeros(before.shape, dtype=torch.float64)

    def wrap(self, ask: Ask) -> Ask:
        return SecureAsk(ask, self, self.threshold)

    def expect(self, publics: dict[str, Publics], dealt: dict[str, Shares], context: bytes) -> None:
        self.sum = MaskedSum(self.before.numel(), publics, dealt, context)

    def liars(self) -> dict[str, str]:
        return self.sum.liars

    def add(self, client: str, tensors: Mapping[str, Tensor], weight: int) -> None:
        found = tensors.get("masked")
        if tensors.keys() != {"masked"} or found is None or found.dtype != torch.int64 or found.dim() != 1:
            raise ProtocolError(f"the update of {client} holds something else than one masked vector")
        try:
            self.sum.add(client, found.numpy().view("uint64"))
        except ValueError as error:
            raise ProtocolError(f"the update of {client} is refused: {error}") from None
        self.weight += weight * self.covers[client].double()

    def fold(self, client: str, core: Tensor, coverage: Tensor, weight: int) -> None:
        raise TypeError("single updates cannot be read under secure aggregation")

    def check_company(self, names: Collection[str]) -> None:
        count = sum((self.covers[name].int() for name in names), torch.zeros(self.before.shape))
        if ((count > 0) & (count < LEAST)).any():
            raise ValueError(f"fewer than {LEAST} clients are left that cover some entries; no sum was asked for")

    def reveal(self, revealed: dict[str, Shares]) -> None:
        """``sum w C S / sum w C``; entries that nobody covers keep their value."""
        total = from_steps(self.sum.unmask(revealed, self.threshold), self.before.shape)
        mean = total / self.weight.clamp_min(1)
        if float(mean.abs().max()) > LARGEST_MEAN or float(total.abs().max()) > LARGEST_SUM:
            raise ValueError("implausible sum: what a client sent is no core under its masks")
        self.mean = torch.where(self.weight > 0, mean, self.before.double()).to(self.before.dtype)

    def result(self, excluded: int = 0) -> Tensor:
        return self.mean


class SecureClient:
    """A client's part: fresh secrets in every round, and cores that only leave under masks.

    Args:
        name: of the client. threshold: clients that must help to reveal a sum; None if secure aggregation was not agreed
            on. rank: of the core.
    """

    def __init__(self, name: str, threshold: int | None, rank: int) -> None:
        self.name, self.threshold, self.rank = name, threshold, rank
        self.secrets: ClientSecrets | None = None
        self.helped = 0  # the last round whose sum it helped to reveal, as far as this process knows
        self.sealed: dict[str, str] | None = None

    @property
    def agreed(self) -> bool:
        """Whether everything that leaves must be masked."""
        return self.threshold is not None

    def keys(self, run: str, round: int) -> Payload:
        """Fresh public keys."""
        if self.threshold is None:
            raise SecureError("secure aggregation was not agreed on")
        if round <= self.helped:
            raise SecureError(
                f"the sum of round {self.helped} has been revealed: another of round {round} could give one away"
            )
        self.secrets, self.sealed = ClientSecrets(self.name, self.threshold, context_of(run, round)), None
        mask, channel, own = self.secrets.publics()
        return Payload(meta={"mask": mask, "channel": channel, "own": own})

    def shares(self, payload: Payload) -> Payload:
        """This client's secrets, shared out and encrypted to each other client."""
        found = payload.said("publics", dict[str, list[str]])
        if any(len(keys) != 3 for keys in found.values()):
            raise ProtocolError("the server's public keys cannot be read")
        publics = {name: (keys[0], keys[1], keys[2]) for name, keys in found.items()}
        return Payload(meta={"shares": self._own().share_out(publics)})

    def take(self, payload: Payload) -> None:
        """Keep the others' encrypted shares, which a request for an update brings."""
        if "sealed" in payload.meta:
            self._own()
            self.sealed = payload.said("sealed", dict[str, str])

    def mask(self, core: Tensor, coverage: Tensor, weight: int) -> dict[str, Tensor]:
        """What is sent for S (L x slots x r x r): y_i over the whole core of rank R."""
        if self.secrets is None or self.sealed is None:  # whatever the server asks for, nothing leaves without masks
            raise SecureError("secure aggregation was agreed on, and the server asks for a core without masks")
        sealed, self.sealed = self.sealed, None
        whole, r = torch.zeros(*core.shape[:2], self.rank, self.rank), core.shape[-1]
        whole[..., :r, :r] = torch.where(coverage, core.detach().cpu(), 0.0)
        largest = float(whole.abs().max()) * weight * (len(sealed) + 1)
        if not largest < 2.0 ** (63 - STEP_BITS):  # so that a core that is no number is refused, too
            raise SecureError(f"{self.name}: its core times its weight is too large to be summed in 64 bits")
        masked = self.secrets.mask(to_steps(whole, weight), sealed)
        return {"masked": torch.from_numpy(masked.view("int64"))}

    def unmask(self, round: int, payload: Payload) -> Payload:
        """The shares that take the masks off the sum of the clients that answered."""
        shares = self._own().reveal(payload.said("answered", list[str]))
        self.helped = round
        return Payload(meta={"shares": shares})

    def _own(self) -> ClientSecrets:
        if self.secrets is None:
            raise SecureError("this client has no secrets for the round: it was restarted in the middle of it")
        return self.secrets
