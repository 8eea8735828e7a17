"""One exchange with the passive parties: one message to each, answers checked; who fails is excluded or away."""

from __future__ import annotations

from typing import Any, Protocol

from h2tune.errors import H2TuneError, ProtocolError
from h2tune.protocol.codec import Message, Payload, decode, encode
from h2tune.transport.base import Absent, Transport
from h2tune.transport.inprocess import InProcess
from h2tune.vertical.exposure import Sizes, check


class Log(Protocol):
    """Where events go; see `h2tune.store.RunStore`."""

    def event(self, event: str, text: str, **fields: Any) -> None: ...


class NoLog:
    """Tells nobody."""

    def event(self, event: str, text: str, **fields: Any) -> None:
        """Nothing is kept."""


class PartyGone(H2TuneError, RuntimeError):
    """A party left in the middle of a round, which starts again from the last commit."""


class Exchange:
    """The passive parties of a run, and the way to them.

    Attributes:
        here: parties that take part.
        excluded: parties that answered what they may not, and why.
        sent: bytes sent to each party by kind; `received` the same for answers.
    """

    def __init__(self, run: str, method: str, parties: list[str], transport: Transport, log: Log, limit: int) -> None:
        self.run_id, self.method, self.transport, self.log, self.limit = run, method, transport, log, limit
        self.here = list(parties)
        self.excluded: dict[str, str] = {}
        self.sizes = Sizes()
        self.round = 0
        self.sent: dict[tuple[str, str], int] = {}
        self.received: dict[tuple[str, str], int] = {}

    def ask(self, kind: str, payloads: dict[str, Payload]) -> dict[str, Payload]:
        """Send one message to each party and return the answers that pass every check, in the order asked."""
        requests = {name: self._request(kind, name, payload) for name, payload in payloads.items()}
        answers: dict[str, Payload] = {}
        for name, data in self.transport.exchange(requests, fresh=kind in ("join", "resume")):
            try:
                if isinstance(data, Exception):
                    raise data
                answers[name] = self._read(kind, name, data)
                self.received[name, kind] = self.received.get((name, kind), 0) + len(data)
            except Absent as error:
                self._lose(name, str(error))
            except ProtocolError as error:
                self.exclude(name, str(error))
        return {name: answers[name] for name in payloads if name in answers}

    def ask_all(self, kind: str, payloads: dict[str, Payload]) -> dict[str, Payload]:
        """As `ask`, where every answer is needed.

        Raises:
            PartyGone: if one is missing.
        """
        answers = self.ask(kind, payloads)
        if missing := payloads.keys() - answers.keys():
            raise PartyGone(", ".join(sorted(missing)))
        return answers

    def _request(self, kind: str, name: str, payload: Payload) -> bytes:
        check(kind, "down", payload, self.sizes, name)
        data = encode(Message(kind, self.run_id, self.round, name, self.method, payload))
        self.sent[name, kind] = self.sent.get((name, kind), 0) + len(data)
        return data

    def _read(self, kind: str, name: str, data: bytes) -> Payload:
        message = decode(data, run=self.run_id, limit=self.limit)
        if message.kind == "failure":
            raise ProtocolError(str(message.payload.meta.get("reason", "failed"))[:500])
        if (message.client, message.round, message.kind) != (name, self.round, kind):
            raise ProtocolError(
                f"{name} answered {kind} of round {self.round} as {message.client}, {message.kind} of round {message.round}"
            )
        return check(kind, "up", message.payload, self.sizes, name)

    def exclude(self, name: str, reason: str) -> None:
        """A party that failed takes no further part."""
        self.excluded[name] = reason
        self.here = [other for other in self.here if other != name]
        self.log.event("client_excluded", f"{name}: {reason}", round=self.round, client=name)
        self.transport.dismiss(name, reason)

    def _lose(self, name: str, reason: str) -> None:
        self.here = [other for other in self.here if other != name]
        self.log.event("client_away", f"{name}: {reason}", round=self.round, client=name)


class Speaker(Protocol):
    """A party in this process; see `h2tune.vertical.passive.Passive`."""

    def answer(self, kind: str, round: int, payload: Payload) -> Payload:
        """The answer to what a message holds."""


class Direct(Exchange):
    """Parties in this process without messages as bytes: for comparisons of many runs, where only the result counts.

    The same values are exchanged, and the same checks are made of names and shapes. Errors are raised.
    """

    def __init__(self, parties: dict[str, Speaker], method: str = "") -> None:
        super().__init__("", method, list(parties), InProcess({}), NoLog(), 0)
        self.parties = parties

    def ask(self, kind: str, payloads: dict[str, Payload]) -> dict[str, Payload]:
        """As in `Exchange`."""
        return {name: self.parties[name].answer(kind, self.round, payload) for name, payload in payloads.items()}
