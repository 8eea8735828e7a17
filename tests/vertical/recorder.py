"""Parties whose messages are kept, and parties that misbehave."""

from __future__ import annotations

from collections.abc import Callable

from vertical.tables import Frames

from h2tune.protocol.codec import Message, decode, encode
from h2tune.store import ClientStore
from h2tune.transport.inprocess import InProcess
from h2tune.vertical.config import VerticalConfig
from h2tune.vertical.exchange import Exchange, NoLog
from h2tune.vertical.federation import Federation, load_parties, salt_of
from h2tune.vertical.passive import Passive
from h2tune.vertical.run_store import VerticalStore


class Recorder:
    """Keeps every message to and from a party; `change` may tamper with an answer."""

    def __init__(self, party: Passive, change: Callable[[Message], bytes | None] = lambda message: None) -> None:
        self.party, self.change = party, change
        self.down: list[bytes] = []
        self.up: list[bytes] = []

    def handle(self, data: bytes) -> bytes:
        """The party's answer, or what `change` makes of it."""
        self.down.append(data)
        answer = self.party.handle(data)
        answer = self.change(decode(answer)) or answer
        self.up.append(answer)
        return answer

    def messages(self, kind: str, way: str = "up") -> list[Message]:
        """All messages of a kind in the order they were sent."""
        found = [decode(data) for data in (self.up if way == "up" else self.down)]
        return [message for message in found if message.kind == kind]


def recorded(config: VerticalConfig, frames: Frames, change: dict[str, Callable[[Message], bytes | None]] | None = None,
             stores: dict[str, ClientStore] | None = None, store: VerticalStore | None = None) -> tuple[Federation, dict[str, Recorder]]:  # fmt: skip
    """A federation in this process whose messages are kept."""
    data = load_parties(config, frames)
    parties = {
        p.name: Recorder(
            Passive(config, data[p.name], salt_of(config, p.name), (stores or {}).get(p.name)),
            (change or {}).get(p.name, lambda message: None),
        )
        for p in config.passive
    }
    exchange = Exchange(
        "0" * 32, config.method.name, list(parties), InProcess(dict(parties)), NoLog(), config.network.largest
    )
    return Federation(config, data[config.label.party], exchange, store), parties


def reply(message: Message, **tensors: object) -> bytes:
    """The message with some tensors replaced."""
    message.payload.tensors |= tensors  # type: ignore[arg-type]
    return encode(message)
