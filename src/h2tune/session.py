"""Who takes part, and how the server talks with them: one request to each, answers checked, deadlines, clients that return.

`Session` knows the clients and the way to them. `Exchanges` is the ``ask`` that a method gets for a round: it counts the exchanges and
the bytes, keeps what the clients report, and gives up when too few answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from torch import Tensor

from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Message, Payload, decode, encode
from h2tune.protocol.exchange import QuorumMissed, Reply, RoundInterrupted, payload_of
from h2tune.protocol.schemas import RoundReport, read
from h2tune.transport.access import PUT_OUT
from h2tune.transport.base import Absent, Lost, Revoked, Transport

ATTEMPTS = 3  # times that a client which restarts in a round is asked again, and that a round is begun
REASON = 500  # characters of a reason; a client may have written some of it
T = TypeVar("T")


class EventLog(Protocol):
    """Where events are told."""

    def event(self, event: str, text: str, **fields: Any) -> None: ...


class RunLog(EventLog, Protocol):
    """Where rounds are committed, too; see `h2tune.store.RunStore`."""

    def commit(self, round: int, tensors: dict[str, Tensor], records: dict[str, Any]) -> None: ...

    def committed(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None: ...

    def add_reports(self, reports: list[Any], after: int) -> int: ...

    def reports(self, length: int) -> list[Any]: ...

    def keep(self, name: str, tensors: dict[str, Tensor]) -> None: ...

    def kept(self, name: str) -> dict[str, Tensor]: ...


class Status(StrEnum):
    WAITING = "not joined yet"
    ACTIVE = "ok"
    AWAY = "away"
    EXCLUDED = "stopped"


@dataclass
class Member:
    """What the server remembers of a client.

    Attributes:
        facts: what it said when it joined. base, final: scores of the untouched model and at the end.
        rounds: one report for each round that it took part in. setup_bytes: sent before round 1.
        reason: why it is away or excluded. revoked: whether the coordinator has excluded it, who may admit it again.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    base: dict[str, float] | None = None
    final: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    setup_bytes: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    status: Status = Status.WAITING
    reason: str = ""
    revoked: bool = False

    @property
    def standing(self) -> str:
        """Status and reason in words."""
        return f"{self.status}: {self.reason}" if self.reason else str(self.status)

    def plain(self) -> dict[str, Any]:
        """As plain values to write down, but for the reports of its rounds, which are written only once."""
        own = {"facts": dict(self.facts), "setup_bytes": dict(self.setup_bytes), "status": str(self.status)}
        return {name: value for name, value in (vars(self) | own).items() if name != "rounds"}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Member:
        return cls(**(values | {"status": Status(values["status"])}))


@dataclass(frozen=True)
class Place:
    """Where in the run a request stands; a client's answer must repeat all of it."""

    round: int = 0
    attempt: int = 0
    step: int = 0
    state: str = ""


class Session:
    """The clients of a run, and the way to them.

    Args:
        run: identity of the run; messages of any other are refused.
        method: name of the method.
        names: the clients, in a fixed order.
        limit: most bytes of an answer.
        rejoining: what clients that restarted need to take their place again, as of the last commit: its round, and a
            payload for each.
    """

    def __init__(
        self,
        run: str,
        method: str,
        names: Sequence[str],
        transport: Transport,
        log: EventLog,
        limit: int,
        rejoining: Callable[[list[str]], tuple[int, dict[str, Payload]]],
    ) -> None:
        self.run_id, self.method_name, self.transport, self.log, self.limit = run, method, transport, log, limit
        self.rejoining = rejoining
        self.process = secrets.token_hex(8)
        self.members = {name: Member() for name in names}

    def request(self, kind: str, payloads: dict[str, Payload], place: Place = Place()) -> Iterator[Reply]:
        """Send one message to each client and yield the answers that pass every check, as they come."""
        header = {"run": self.run_id, "method": self.method_name, "process": self.process, **vars(place)}
        requests = {
            name: encode(Message(kind, client=name, payload=payload, **header)) for name, payload in payloads.items()
        }
        for name, data in self.transport.exchange(requests, fresh=kind in ("join", "rejoin")):
            try:
                if isinstance(data, Exception):
                    raise data
                message = decode(data, run=self.run_id, limit=self.limit)
                self._check_address(message, name, kind, place)
                yield Reply(name, message.payload, message.examples, len(requests[name]), len(data))
            except Absent as error:
                self.lose(name, error, place.round)
            except ProtocolError as error:
                self.exclude(name, str(error), place.round, revoked=isinstance(error, Revoked))

    def _check_address(self, message: Message, name: str, kind: str, place: Place) -> None:
        if message.client != name:
            raise ProtocolError(f"it sent an answer in the name of {message.client}")
        if message.kind == "failure":
            reason = str(message.payload.meta.get("reason", "failed"))[:REASON]
            raise Lost(reason) if message.payload.meta.get("rejoin") is True else ProtocolError(reason)
        found = Place(message.round, message.attempt, message.step, message.state)
        if (message.kind, found) != (kind, place):
            raise ProtocolError(
                f"it answered {message.kind!r} of round {message.round}, step {message.step}; it was asked for {kind!r} of"
                f" round {place.round}, step {place.step}"
            )
        if kind == "rejoin":  # data may have been changed on purpose while the run was stopped (--changed data)
            self.members[name].facts["n_train"] = message.examples
        known = self.members[name].facts.get("n_train", message.examples)
        if message.examples != known:
            raise ProtocolError(f"it reports {message.examples} training examples but reported {known} when it joined")

    def exclude(self, name: str, reason: str, round: int, revoked: bool = False) -> None:
        """A client that failed or was revoked takes no further part; the others go on if the quorum allows."""
        member, reason = self.members[name], reason[:REASON]
        member.status, member.reason, member.revoked = Status.EXCLUDED, reason, revoked
        self.log.event("client_excluded", f"{name}: {reason}", round=round, client=name)
        self.transport.dismiss(name, reason)

    def put_out(self, round: int) -> set[str]:
        """Exclude clients that the coordinator has revoked, take back those admitted again; returns the revoked ones."""
        revoked = set(self.transport.revoked())
        for name, member in self.members.items():
            if name in revoked and member.status is not Status.EXCLUDED:
                self.exclude(name, PUT_OUT, round, revoked=True)
            elif name not in revoked and member.revoked:
                member.status, member.reason = (Status.AWAY, "") if member.facts else (Status.WAITING, "")
                member.revoked = False
                self.log.event("client_admitted", f"{name} was admitted again", round=round, client=name)
        return revoked

    def lose(self, name: str, error: Absent, round: int) -> None:
        """A client that gave no answer misses the round; when it is here again, it takes part again."""
        member = self.members[name]
        if isinstance(error, Lost):
            member.status, member.reason = Status.WAITING, ""
        elif member.status is not Status.WAITING:
            member.status, member.reason = Status.AWAY, str(error)
        self.log.event("client_away", f"{name}: {error}", round=round, client=name)

    def with_status(self, *wanted: Status) -> list[str]:
        """Names of the clients of a status, in their fixed order."""
        return [name for name, member in self.members.items() if member.status in wanted]

    def activate(self, name: str) -> None:
        self.members[name].status, self.members[name].reason = Status.ACTIVE, ""

    def returned(self) -> list[str]:
        """Clients that are here without a place in the run; excluded ones are told once more that they are out."""
        here = self.transport.returned()
        for name in here:
            if self.members[name].status is Status.EXCLUDED:
                self.transport.dismiss(name, self.members[name].standing)
        return [name for name in here if self.members[name].status is not Status.EXCLUDED]

    def rejoin(self, names: list[str]) -> list[str]:
        """Give clients that restarted their place as of the last commit; returns those that took it."""
        names = [name for name in names if self.members[name].status in (Status.ACTIVE, Status.AWAY)]
        if not names:
            return []
        number, payloads = self.rejoining(names)
        back = [reply.client for reply in self.request("rejoin", payloads, Place(number))]
        for name in back:
            self.activate(name)
            self.log.event("client_rejoined", f"{name} takes part again", client=name)
        return back


class Exchanges:
    """The exchanges of one round, or of the set-up, as a method makes them: ``ask(kind, {client: payload}, read)``.

    Args:
        place: round, attempt and state; the step is counted here.
        quorum: answers without which an exchange is given up (of fewer clients: all of them).
        ends: the action with which a client's part in the round is over; its answer holds the client's report.
        evaluate: whether clients score their models at the end of this round.
        patient: whether a client that restarts meanwhile is taken back and asked again.
        setup_ends: the exchange with which a client is set up; in a round, none.
        write_down: called once the round must not be begun again; it writes that down.

    Attributes:
        ready: clients that are set up.
        once: whether the round must not be begun again.
    """

    def __init__(
        self,
        session: Session,
        place: Place,
        *,
        quorum: int = 0,
        ends: str = "",
        evaluate: bool = False,
        patient: bool = True,
        setup_ends: str = "",
        write_down: Callable[[], None] | None = None,
    ) -> None:
        self.session, self.place, self.quorum, self.ends = session, place, quorum, ends
        self.write_down, self.once = write_down, False
        self.run, self.round = session.run_id, place.round
        self.evaluate, self.patient, self.setup_ends, self.step = evaluate, patient, setup_ends, 0
        self.ready: list[str] = []
        self.reports: dict[str, dict[str, Any]] = {}
        self.traffic: dict[str, dict[str, int]] = {}

    def __call__(
        self,
        kind: str,
        payloads: dict[str, Payload],
        read: Callable[[Reply], T] = payload_of,
        *,
        again: bool = True,
    ) -> dict[str, T]:
        """See `h2tune.protocol.exchange.Ask`.

        Raises:
            QuorumMissed: fewer clients answered than the quorum asks for.
            RoundInterrupted: a client that had answered an earlier exchange of the round restarted, or one that had
                answered was revoked.
        """
        found: dict[str, T] = {}
        place = Place(self.place.round, self.place.attempt, self.step, self.place.state)
        begun, self.step = set(self.traffic), self.step + 1
        if kind == self.ends:
            payloads = {
                n: Payload(p.tensors, p.meta | {"evaluate": self.evaluate}, p.texts) for n, p in payloads.items()
            }
        left = payloads
        for _ in range(ATTEMPTS):
            for reply in self.session.request(kind, left, place):
                self._take(reply, kind, read, found)
            back = self._rejoined([name for name in left if name not in found]) if again and self.patient else []
            if begun & set(back):
                raise RoundInterrupted(f"{', '.join(sorted(begun & set(back)))} restarted")
            if not back:
                break
            left = {name: payloads[name] for name in back}
        self.check_revoked()
        # Once the round must not be begun again, whoever asks decides how many answers are enough.
        if not self.once and len(found) < min(self.quorum, len(payloads)):
            raise QuorumMissed(f"{len(found)} of {len(payloads)} clients answered {kind!r}")
        return found

    def check_revoked(self) -> None:
        """Raise RoundInterrupted if a client that has answered in this round was revoked: its part in it must not count."""
        gone = self.session.put_out(self.place.round)
        if self.ends and (gone := gone & self.traffic.keys()):
            raise RoundInterrupted(f"{', '.join(sorted(gone))} was revoked")

    def _take(self, reply: Reply, kind: str, read: Callable[[Reply], T], found: dict[str, T]) -> None:
        name, round = reply.client, self.place.round
        traffic = self.traffic.setdefault(name, {"bytes_down": 0, "bytes_up": 0})
        traffic["bytes_down"] += reply.bytes_down
        traffic["bytes_up"] += reply.bytes_up
        if self.setup_ends:
            setup = self.session.members[name].setup_bytes
            setup["down"] += reply.bytes_down
            setup["up"] += reply.bytes_up
        try:
            report = read_report(reply) if kind == self.ends else None
            found[name] = read(reply)
        except ProtocolError as error:
            self.exclude(name, str(error))
            return
        if kind == self.setup_ends:
            self.session.activate(name)
            self.ready.append(name)
        if self.setup_ends:
            done = "has joined" if kind == "join" else "is set up" if name in self.ready else f"has answered {kind!r}"
            self.session.log.event("client_set_up", f"{name} {done}", round=round, client=name)
        if report is not None:
            self.reports[name] = {"round": round} | report | traffic
            self.session.log.event(
                "client_finished", f"{name} finished round {round}", client=name, **self.reports[name]
            )

    def _rejoined(self, missing: list[str]) -> list[str]:
        here = set(self.session.returned())
        return self.session.rejoin([name for name in missing if name in here])

    def hold_once(self) -> None:
        """See `h2tune.protocol.exchange.Ask`."""
        if self.write_down:
            self.write_down()
        self.once = True

    def exclude(self, name: str, reason: str) -> None:
        self.reports.pop(name, None)
        self.session.exclude(name, reason, self.place.round)

    def takes_part(self, name: str) -> bool:
        return self.session.members[name].status in (Status.ACTIVE, Status.WAITING)

    def excluded(self) -> list[str]:
        return self.session.with_status(Status.EXCLUDED)

    def finished(self) -> dict[str, dict[str, Any]]:
        """The report of every client that ended the round, with all bytes of the round."""
        return {name: report | self.traffic[name] for name, report in self.reports.items()}


def read_report(reply: Reply) -> dict[str, Any]:
    """A client's report of a round (`RoundReport`), taken out of its payload.

    Raises:
        ProtocolError: the report is missing or malformed.
    """
    return read(RoundReport, reply.payload.meta.pop("report", None))
