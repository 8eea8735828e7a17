"""What is asked of an engine: authenticated, encrypted delivery of opaque bytes, nothing else.

An engine is used as a channel: rounds, deadlines, state and restarts are ours. `h2tune.transport.nvflare.flare` does it with
NVFlare; tests do it with queues.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from h2tune.errors import H2TuneError

SERVER = "server"
REFUSED = "refused: "
"""In the reason why an envelope was not delivered: it was refused for good, and what follows says why."""
Done = Callable[[str], None]
"""Called once with the reason why an envelope was not delivered, or with an empty text."""


class ChannelError(H2TuneError, RuntimeError):
    """The engine cannot do its work; the text says why and what to do."""


class Channel(Protocol):
    """One participant's end.

    Attributes:
        ports: addresses on which the engine listens, once that is known.
    """

    ports: list[str]

    def send(self, to: str, data: bytes, done: Done = lambda error: None) -> None:
        """Carry an envelope; returns at once. ``done`` is called, from any thread, when its fate is known."""

    def receive(self, seconds: float) -> tuple[str, bytes] | None:
        """The next envelope and who, by his certificate, wrote it; None if none came.

        Raises:
            ChannelError: if none will ever come.
        """

    def address(self, name: str) -> str:
        """From where a participant is connected; an empty text if that is not known."""

    def close(self) -> None:
        """End the engine."""
