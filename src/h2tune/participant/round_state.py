"""Where a client stands: the last round that it ended, and how it goes back when a round came to nothing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from h2tune.errors import H2TuneError
from h2tune.store import ClientStore

State = dict[str, Tensor]


class LostStateError(H2TuneError, RuntimeError):
    """The private state of a committed round is not on this disk."""


class RoundState:
    """Keeps a client's private state round by round.

    Args:
        name: of the client.
        store: where states are kept; None keeps only the one with which the current round began.
        take, give: the method's `state` and `load_state`.

    Attributes:
        done: the last round that the client ended.
    """

    def __init__(
        self, name: str, store: ClientStore | None, take: Callable[[], State], give: Callable[[State], None]
    ) -> None:
        self.name, self.store, self.take, self.give = name, store, take, give
        self.done = 0
        self._begun: tuple[int, int] | None = None  # the round that was begun last, and which attempt at it
        self._before: State = {}  # the state with which it began

    def begin(self, round: int, attempt: int) -> bool:
        """Start a round from the state after the last one, also if it was begun before and came to nothing.

        Returns:
            False if this very attempt is under way already.
        """
        if self._begun == (round, attempt):
            return False
        if self.done >= round or (self._begun is not None and self._begun[0] > self.done):
            self.go_back(round - 1)
        self._begun, self._before = (round, attempt), self.take()
        return True

    def end(self, round: int) -> None:
        """The round has come to its end: keep what was learnt."""
        self.done = round
        if self.store:
            self.store.save_state(round, self.take())

    def stand_after(self, round: int) -> bool:
        """Take the state with which a round was ended before; False if just that one is not kept."""
        if self.store is None or not self.store.has_state(round):
            return False
        self.go_back(round)
        return True

    def undo(self) -> None:
        """Take the state with which the current round began."""
        self.give(self._before)

    def go_back(self, round: int) -> None:
        """Take the state as it was after a round.

        Raises:
            LostStateError: it is not there.
        """
        state = self.store.load_state(round) if self.store else None
        if state is None and self._begun is not None and self._begun[0] == round + 1:
            state = self._before
        if state is None:
            raise LostStateError(f"{self.name} has no saved state for round {round}")
        self.give(state)
        self.done, self._begun = round, None
