"""How a method talks with clients: ``ask(kind, {client: payload}, read) -> {client: what was read}``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from h2tune.protocol.codec import Payload


@dataclass(frozen=True)
class Reply:
    """A client's answer that passed every check of the session."""

    client: str
    payload: Payload
    examples: int
    bytes_down: int
    bytes_up: int


class QuorumMissed(Exception):
    """Too few clients answered an exchange; nothing of the round is committed."""


class RoundSpoiled(QuorumMissed):
    """Enough clients answered, and what came of it cannot be used; who is to blame is not known."""


class RoundInterrupted(Exception):
    """The round must begin again: a client restarted in the middle of several exchanges, was revoked after an answer, or is
    missing where its company was needed.

    Attributes:
        without: clients that the next attempt leaves out, if it can.
    """

    def __init__(self, reason: str, without: Collection[str] = ()) -> None:
        super().__init__(reason)
        self.without = frozenset(without)


def payload_of(reply: Reply) -> Any:
    """What `Ask` reads of a reply unless it is told otherwise."""
    return reply.payload


class Ask(Protocol):
    """The exchanges of a round, or of the set-up; see `h2tune.session.Exchanges`.

    Attributes:
        run: identity of the run. round: number of the round.
    """

    run: str
    round: int

    def __call__(
        self,
        kind: str,
        payloads: dict[str, Payload],
        read: Callable[[Reply], Any] = payload_of,
        *,
        again: bool = True,
    ) -> dict[str, Any]:
        """Ask each client and return what ``read`` made of its answer, by client.

        Args:
            kind: one of the method's actions.
            payloads: what each client is sent.
            read: called with each reply as it comes. A ProtocolError that it raises excludes the client; then it must
                have changed nothing.
            again: whether a client that restarts meanwhile is asked again.

        Raises:
            QuorumMissed: fewer clients answered than the quorum asks for.
            RoundInterrupted: the round must begin again.
        """

    def hold_once(self) -> None:
        """Write down that this round is not to be begun again; if it fails from here on, the next one follows."""

    def exclude(self, name: str, reason: str) -> None:
        """Exclude a client from the rest of the run."""

    def takes_part(self, name: str) -> bool:
        """Whether a client is neither excluded nor away."""

    def excluded(self) -> list[str]:
        """The clients that the run has excluded so far and not admitted again."""
