"""Who is refused, or confirms nothing, keeps nobody else waiting."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from h2tune.config import NetworkConfig
from h2tune.transport.channel import Done
from h2tune.transport.envelope import HEAD_LIMIT, PROTOCOL, Envelope, unpack
from h2tune.transport.network import RETRY, Network
from h2tune.version import __version__


class Wire:
    """A channel that keeps what is sent."""

    ports = ()

    def __init__(self) -> None:
        self.sent: list[tuple[str, Envelope]] = []
        self.inbox: list[tuple[str, bytes]] = []

    def send(self, to: str, data: bytes, done: Done = lambda error: None) -> None:
        self.sent.append((to, unpack(data)))

    def receive(self, seconds: float) -> tuple[str, bytes] | None:
        return self.inbox.pop(0) if self.inbox else None

    def address(self, name: str) -> str:
        return ""


def hello(process: str, federation: str = "f") -> bytes:
    said = {"federation": federation, "process": process, "version": __version__, "protocol": PROTOCOL}
    return Envelope("hello", said | {"busy": False, "doing": {}}).pack()


def made(wire: Wire, clock: Any = lambda: 0.0) -> Network:
    return Network(wire, ["a", "b"], "f", NetworkConfig(), lambda *args, **fields: None, clock)


def test_refusals_are_answered_to_the_process_and_not_faster_than_hellos_come() -> None:
    wire, now = Wire(), [0.0]
    network = made(wire, lambda: now[0])
    for _ in range(100):
        wire.inbox = [("a", hello("p", "another federation")), ("stranger", hello("q"))]
        network._look_around()
    assert [(to, e.fields["process"]) for to, e in wire.sent] == [("a", "p"), ("stranger", "q")]
    now[0] += RETRY
    wire.inbox = [("a", hello("p", "another federation"))]
    network._look_around()
    assert len(wire.sent) == 3


def test_a_last_word_names_the_process_and_is_short_enough_to_be_read() -> None:
    wire = Wire()
    network = made(wire)
    wire.inbox = [("a", hello("p"))]
    network._look_around()
    network.dismiss("a", "x" * 10 * HEAD_LIMIT)  # a client may have written the reason
    ((to, envelope),) = wire.sent
    assert to == "a" and envelope.fields["process"] == "p" and len(envelope.fields["reason"]) < 1000


def test_a_client_that_confirms_nothing_has_its_share_of_the_senders(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")
    from h2tune.transport.nvflare.relay import REASON, SHARE, THREADS, Engine, Relay

    told: list[dict[str, Any]] = []
    free, reached = threading.Event(), threading.Event()

    class Cell:
        def send_request(self, target: str, **rest: Any) -> Any:
            if target == "b":
                reached.set()
            free.wait(60)
            raise RuntimeError("x" * 10 * REASON)

    monkeypatch.setattr(Engine, "link", type("Link", (), {"send": staticmethod(told.append)}), raising=False)
    relay = Relay(server=True)
    relay.cell = Cell()
    try:
        for number in range(2 * THREADS):
            relay.take({"to": "a", "number": number, "seconds": 60.0}, b"")
        assert len(told) == 2 * THREADS - SHARE and {t["error"] for t in told} == {"too many envelopes wait for it"}
        relay.take({"to": "b", "number": -1, "seconds": 60.0}, b"")
        assert reached.wait(60)
    finally:
        free.set()
        relay.senders.shutdown()
    assert max(len(t["error"]) for t in told) == REASON
