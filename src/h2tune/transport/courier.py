"""What is asked of an engine: authenticated, encrypted delivery of opaque bytes, nothing else.

An engine is used as a courier: rounds, deadlines, state and restarts are ours. `h2tune.transport.flare` does it with
NVFlare; tests do it with queues.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

SERVER = "server"
Done = Callable[[str], None]
"""Called once with the reason why a letter was not delivered, or with an empty text."""


class CourierError(RuntimeError):
    """The engine cannot do its work; the text says why and what to do."""


class Courier(Protocol):
    """One participant's end."""

    def send(self, to: str, data: bytes, done: Done = lambda error: None) -> None:
        """Carry a letter; returns at once. ``done`` is called, from any thread, when its fate is known."""

    def receive(self, seconds: float) -> tuple[str, bytes] | None:
        """The next letter and who, by his certificate, wrote it; None if none came.

        Raises:
            CourierError: if none will ever come.
        """

    def close(self) -> None:
        """End the engine."""
