"""What surrounds the work of a kit's process: its connection, its status file, and the last word in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from h2tune.config import NetworkConfig
from h2tune.deployment.kits import SOON, Kit
from h2tune.deployment.status import StatusFile
from h2tune.session import EventLog
from h2tune.transport.channel import Channel
from h2tune.transport.client_loop import ClientLoop

LEAST_PATIENCE = 600.0  # seconds without a server after which a client ends, at the least
Say = Callable[[str], None]
Engine = Callable[..., Channel]
"""Makes a channel: folder, role, name, and whom to tell what it says."""


class Shown(Protocol):
    """Who watches a run."""

    def message(self, text: str, level: str = "info") -> None: ...


class Answers(Protocol):
    """Who answers the server's messages.

    Attributes:
        doing: what it is doing, in plain values that the coordinator may see.
        interrupt: called from time to time during long work; it raises if nothing more is to be done.
    """

    doing: dict[str, Any]
    interrupt: Callable[[], None]

    def answer(self, data: bytes) -> bytes: ...


def teller(store: EventLog, watcher: Shown | None) -> Callable[..., None]:
    """What tells of an event: in the run's log, and to whoever watches."""

    def tell(event: str, text: str, **fields: Any) -> None:
        store.event(event, text, **fields)
        if watcher:
            watcher.message(text, "warning" if event == "refused" else "info")

    return tell


@contextmanager
def connection(kit: Kit, status: StatusFile, engine: Engine, say: Say) -> Iterator[Channel]:
    """The kit's channel, closed at the end; the status file then says that the federation finished.

    Raises:
        ChannelError: the engine does not start.
    """
    end = kit.check_certificate()
    if end - datetime.now(UTC) < timedelta(days=SOON):
        say(f"the certificate of {kit.about.name} expires on {end:%Y-%m-%d}: {kit.cure()}")
    channel = engine(kit.engine, kit.about.role, kit.about.name, say)
    try:
        yield channel
    finally:
        channel.close()
    status.end("finished")


def take_part(
    kit: Kit, status: StatusFile, participant: Answers, engine: Engine, say: Say, network: NetworkConfig
) -> str:
    """Answer the server until the federation is over; returns its last words.

    A server that is not reached within ``network.gather`` seconds, or that was reached and is away for ``network.patience``
    (each at least `LEAST_PATIENCE`), is no longer waited for.

    Raises:
        ChannelError, DismissedError
    """
    about, first, later = kit.about, *(max(s, LEAST_PATIENCE) for s in (network.gather, network.patience))
    say(f"{about.name}: everything is ready; connecting to {about.host}:{about.port} for up to {first:g} s")
    with connection(kit, status, engine, say) as channel:
        loop = ClientLoop(channel, about.federation, lambda: participant.doing, patience=later, first=first, say=say)
        participant.interrupt = loop.check

        def standing() -> dict[str, Any]:
            now = {"busy": loop.busy, "server_heard": loop.heard, "doing": participant.doing}
            return now | {"listens": channel.ports}

        with status.kept(standing):
            return loop.run(participant.answer)
