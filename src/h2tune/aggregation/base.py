"""What every aggregator of cores answers, and the mean.

    S <- sum_i w_i C_i S_i / sum_i w_i C_i,   entry by entry over the clients that cover it

An aggregator folds updates in as they arrive and gives the new core at the end. It may wrap the exchange itself
(`wrap`), as secure aggregation does, or another aggregator, as differential privacy does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor

from h2tune.core.exact_sum import CoreSum
from h2tune.protocol.exchange import Ask

Decode = Callable[[str, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""S_i and its coverage (L x slots x r x r) from what a client sent; raises ProtocolError."""


class Aggregator(ABC):
    """Combines a round's updates.

    Args:
        decode: reads a client's tensors.

    Attributes:
        notices: what was done otherwise than asked for, in words.
        spent: noise multipliers of the sums that were published.
    """

    def __init__(self, decode: Decode) -> None:
        self.decode = decode
        self.notices: list[str] = []
        self.spent: list[float] = []

    @abstractmethod
    def start(self, before: Tensor, covers: Mapping[str, Tensor]) -> None:
        """Begin a round.

        Args:
            before: the core as it is (L x slots x R x R).
            covers: for every selected client, whether or not it will answer, the entries that it covers.
        """

    def add(self, client: str, tensors: Mapping[str, Tensor], weight: int) -> None:
        """Fold one client's update in.

        Raises:
            ProtocolError: it is not what this client may send; then nothing has changed.
        """
        self.fold(client, *self.decode(client, tensors), weight)

    @abstractmethod
    def fold(self, client: str, core: Tensor, coverage: Tensor, weight: int) -> None:
        """Fold in S_i, of any leading rank r <= R, with its coverage."""

    @abstractmethod
    def result(self, excluded: int = 0) -> Tensor:
        """The new core; call it once a round.

        Args:
            excluded: clients that the run has excluded so far.
        """

    def wrap(self, ask: Ask) -> Ask:
        """The exchange through which updates must come."""
        return ask


class Mean(Aggregator):
    """The exact mean, streamed: neither the order of arrival nor the number of clients changes it or its memory."""

    def start(self, before: Tensor, covers: Mapping[str, Tensor]) -> None:
        self.before, self.sum = before, CoreSum(before.shape)

    def fold(self, client: str, core: Tensor, coverage: Tensor, weight: int) -> None:
        self.sum.add(core, coverage, weight)

    def result(self, excluded: int = 0) -> Tensor:
        return self.sum.mean(self.before)
