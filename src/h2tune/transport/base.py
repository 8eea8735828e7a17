"""What a server asks of a transport: carry messages, say who is here."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

from h2tune.errors import ProtocolError

Reply = tuple[str, bytes | Exception]


class Absent(ProtocolError):
    """A client gave no answer. Nothing is known against it: it may come back."""


class Revoked(ProtocolError):
    """The coordinator has put a client out."""


class Lost(Absent):
    """A client has lost its private state, and can only join anew."""


class Transport(Protocol):
    """Carries bytes to clients and back; knows no mathematics."""

    def exchange(self, requests: dict[str, bytes], fresh: bool = False) -> Iterator[Reply]:
        """Deliver one message to each named client and yield the answers as they come, or what went wrong.

        Args:
            fresh: these messages give clients their place in the run; any other needs that they have it.
        """

    def returned(self) -> list[str]:
        """Clients that are here, idle, and have no place in the run: new, restarted or late ones."""

    def wait(self, names: Collection[str], count: int, first: bool = False) -> bool:
        """Wait until ``count`` of ``names`` are here and idle, at the start or in mid-run; False if they do not come."""

    def dismiss(self, name: str, reason: str) -> None:
        """Tell a client that it takes no further part."""

    def revoked(self) -> Collection[str]:
        """Clients that the coordinator has put out by now."""
