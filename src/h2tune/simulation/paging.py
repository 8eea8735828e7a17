"""Many simulated clients in little memory: one that is not needed lies on disk alone.

A client's private state is written when it ends a round in any case (`h2tune.participant.round_state`). So a client that has
ended its round can leave memory, rows, adapter and optimiser together, and is built again when a message for it comes: the same
way as after a restart, and so with the same figures bit for bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from h2tune.client import Client
from h2tune.config import ClientConfig
from h2tune.participant.context import ClientContext
from h2tune.participant.row_privacy import RowPrivateTrainer
from h2tune.protocol.codec import decode, encode
from h2tune.store import ClientStore
from h2tune.utils.files import write_atomic


class Memory:
    """The clients that are in memory: those that were used last.

    Args:
        room: most clients. A client must not leave between two exchanges of a round, so a round's clients must fit.
            While clients are set up there may be more: those that have trained on private rows stay until they are.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._held: OrderedDict[str, Client] = OrderedDict()

    def get(self, name: str, bring: Callable[[], Client]) -> Client:
        """The client of this name; ``bring`` builds it if it is not here."""
        if name not in self._held:
            may_leave = [held for held, client in self._held.items() if not _has_spent(client)]
            for held in may_leave[: max(0, len(self._held) - self.room + 1)]:
                _leave(self._held.pop(held))
            self._held[name] = bring()
        self._held.move_to_end(name)
        return self._held[name]

    def __contains__(self, name: str) -> bool:
        return name in self._held


class PagedClient:
    """Stands for a client that is in memory only while it is needed.

    Args:
        build: makes the client as it is before it joins. store: its directory.
    """

    def __init__(self, config: ClientConfig, build: Callable[[], Client], store: ClientStore, memory: Memory) -> None:
        self.config, self.name = config, config.name
        self._build, self._memory = build, memory
        self._welcome: Path = store.folder / "welcome.message"
        self._joining: list[bytes] = []  # what it was sent before it was ready: nothing of that is on disk yet
        self._ready, self._done = False, 0  # set up; the last round that it ended
        self._remarks: list[str] | None = None

    @property
    def context(self) -> ClientContext:
        return self._client().context

    @property
    def remarks(self) -> list[str]:
        """See `Client.remarks`."""
        if self._remarks is None:
            self._remarks = self._client().remarks
        return self._remarks

    def introduction(self) -> dict[str, Any]:
        client = self._client()
        self._remarks = client.remarks
        return client.introduction()

    def handle(self, data: bytes) -> bytes:
        """See `Client.handle`."""
        client = self._client()
        answer = client.handle(data)
        if not client.ready:
            self._joining.append(data)
        elif not self._ready:
            write_atomic(self._welcome, data)
            self._joining, self._ready = [], True
        self._done = client.rounds.done
        return answer

    def _client(self) -> Client:
        return self._memory.get(self.name, self._bring)

    def _bring(self) -> Client:
        """Build the client and let it stand where it stood."""
        client = self._build()
        for data in self._joining:
            client.handle(data)
        if self._ready:
            data = self._welcome.read_bytes()
            welcome = decode(data, limit=len(data))
            client.handle(encode(replace(welcome, kind="rejoin", round=self._done)))
        return client


def _has_spent(client: Client) -> bool:
    """Whether it trained on private rows before it was set up (a new head, when it joined), with nothing of that on disk.

    Built again it would join again, and spend its rows' privacy a second time: the noise cannot be drawn again.
    """
    trainer = client.context.trainer
    return not client.ready and isinstance(trainer, RowPrivateTrainer) and trainer.ledger.begun


def _leave(client: Client) -> None:
    """Take what a client has on its base model off it; the rest goes with the object."""
    context = client.context
    if context.has_adapter:
        context.base.detach(context.adapter)
