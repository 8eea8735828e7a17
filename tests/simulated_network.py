"""A post network with a clock of its own: a federation over a network, without a network and without waiting.

The server runs as it does over NVFlare (`h2tune.deployment.serve`), clients answer with the same `Participant`; only the
channel is made of queues, and time passes when the server waits. Faults are planted by message kind and by time.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from h2tune.config import Experiment
from h2tune.deployment.join import Participant
from h2tune.deployment.kits import PUBLIC, SCHEMA, About, Kit, write_kit
from h2tune.deployment.provision import concerns, with_public_files
from h2tune.participant.base_models import ModelPool
from h2tune.protocol.codec import Message, decode
from h2tune.transport.channel import Done
from h2tune.transport.client_loop import Conversation
from h2tune.transport.envelope import Envelope
from h2tune.version import __version__

FEDERATION = "f" * 32
WORK, TRAVEL = 2.0, 0.01  # seconds that an answer and a envelope take


def kits(experiment: Experiment, folder: Path, federation: str = FEDERATION) -> dict[str, Kit]:
    """Kits without certificates: nobody asks for one here."""
    for name in ("server", *(c.name for c in experiment.clients)):
        role = "server" if name == "server" else "client"
        about = About(SCHEMA, role, name, federation, "localhost", 1, __version__)
        write_kit(folder / name, about, with_public_files(concerns(experiment, name), folder / name / PUBLIC))
    return {path.name: _Kit(path) for path in folder.iterdir()}


class _Kit(Kit):
    def _life(self, name: str) -> tuple[datetime, datetime]:
        return datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


class SimulatedNetwork:
    """The server's channel, and the clock."""

    ports, federation = ("10.0.0.1:8443",), FEDERATION

    def __init__(self) -> None:
        self.now, self.clients, self.envelopes = 0.0, {}, []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.cut = False  # nothing travels, in either direction

    def engine(self, *args: Any) -> SimulatedNetwork:
        return self

    def clock(self) -> float:
        return self.now

    def at(self, time: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._count), do))

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self.at(self.now + seconds, do)

    def send(self, to: str, data: bytes, done: Done = lambda error: None) -> None:
        client = self.clients.get(to)
        if self.cut or client is None or not client.alive:
            done("unreachable")
            return
        self.after(TRAVEL, lambda: client.take(data))
        done("")

    def address(self, name: str) -> str:
        return "10.0.0.7" if name in self.clients else ""

    def receive(self, seconds: float) -> tuple[str, bytes] | None:
        end = self.now + seconds
        while not self.envelopes and self._events and self._events[0][0] <= end:
            self.now, _, do = heapq.heappop(self._events)
            do()
        if self.envelopes:
            return self.envelopes.pop(0)
        self.now = end
        return None

    def close(self) -> None:
        self.envelopes.clear()


class SimulatedClient:
    """A client's process: hellos every second, answers after a while, faults on demand.

    Args:
        make: makes what answers a message; called anew for every process, as a started process would.
        faults: message kind to what happens when it arrives for the first time: (moment, action), moment being
            ``before`` (nothing was done) or ``after`` (the answer was made, not sent).
    """

    def __init__(self, network: SimulatedNetwork, name: str, make: Callable[[], Callable[[bytes], bytes]],
                 faults: dict[str, tuple[str, Callable[[SimulatedClient], None]]] | None = None) -> None:  # fmt: skip
        self.network, self.name, self.make, self.faults = network, name, make, dict(faults or {})
        self.alive, self.hung, self.lives = False, False, 0
        self.work, self.federation, self.suffix = WORK, network.federation, ""
        self.stopped: list[str] = []
        self.paused: list[str] = []
        network.clients[name] = self

    def start(self) -> None:
        self.lives += 1
        self.alive, self.hung, self.answer = True, False, self.make()
        self.talk, self.last = Conversation(self.federation, f"{self.name}-{self.lives}{self.suffix}"), None
        self._beat(self.lives)

    def kill(self, back_after: float | None = None) -> None:
        self.alive = False
        if back_after is not None:
            self.network.after(back_after, self.start)

    def hang(self, seconds: float) -> None:
        self.hung = True
        self.network.after(seconds, lambda: setattr(self, "hung", False))

    def _beat(self, life: int) -> None:
        if self.alive and life == self.lives:
            self.hello()
            self.network.after(1.0, lambda: self._beat(life))

    def hello(self) -> None:
        self._post(self.talk.hello({}))

    def _post(self, envelope: Envelope) -> bool:
        if not self.network.cut:
            data = envelope.pack()
            self.network.after(TRAVEL, lambda: self.network.envelopes.append((self.name, data)))
        return not self.network.cut

    def take(self, data: bytes) -> None:
        envelope = self.talk.heard(data) if self.alive else None
        if envelope is None:
            return
        if envelope.kind == "stop":
            self.stopped.append(envelope.fields["reason"])
            self.alive = False
            return
        if envelope.kind == "pause":
            self.paused.append(envelope.fields["reason"])
            return
        if self.last is not None and self.last.fields["number"] == envelope.fields["number"]:
            self._deliver(self.last, self.lives)  # a request that comes twice is answered twice, and done once
            return
        self.talk.busy, life = True, self.lives
        self.hello()
        moment, fault = self._planted(decode(envelope.body))
        if fault and moment == "before":
            fault(self)
            if not self.alive:
                return
        body = self.answer(envelope.body)
        if fault and moment == "after":
            fault(self)
        answer = Envelope("answer", {"number": envelope.fields["number"]}, body)
        self.network.after(self.work, lambda: self._finish(answer, life))

    def _planted(self, message: Message) -> tuple[str, Callable[[SimulatedClient], None] | None]:
        """The fault of this kind of message, or of this step of a round (``step 25``)."""
        for key in (message.kind, f"{message.kind} {message.step}"):
            if key in self.faults:
                return self.faults.pop(key)
        return "", None

    def _finish(self, answer: Envelope, life: int) -> None:
        if life == self.lives:
            self.last = answer
        self._deliver(answer, life)

    def _deliver(self, envelope: Envelope, life: int) -> None:
        if not self.alive or life != self.lives:
            return
        if self.hung or not self._post(envelope):
            self.network.after(0.5, lambda: self._deliver(envelope, life))
            return
        self.talk.busy = False
        self.hello()


POOLS: dict[str, ModelPool] = {}


def participant(kit: Kit, own: dict[str, Any]) -> Callable[[], Callable[[bytes], bytes]]:
    """What a client's process answers with. Frozen weights, and what follows from them alone, are read once a session."""

    def make() -> Callable[[bytes], bytes]:
        pool = POOLS.setdefault(kit.about.name, ModelPool("cpu"))
        with mock.patch.object(ModelPool, "of", return_value=pool):
            return Participant(kit, own).answer

    return make
