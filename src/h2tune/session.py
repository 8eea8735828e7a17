"""Who takes part, and how the server talks with them: one message to each, answers judged, the rest excluded or missed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from h2tune.protocol.codec import Message, Payload, ProtocolError, decode, encode
from h2tune.transport.base import Absent, Lost, Transport

WAITING, AWAY, STOPPED = "not joined yet", "away: ", "stopped: "  # what a member's status is or begins with, or "ok"


class RunLog(Protocol):
    """Where rounds are committed and events told; see `h2tune.store.RunStore`."""

    def event(self, event: str, text: str, **fields: Any) -> None: ...

    def commit(self, round: int, tensors: dict, records: dict) -> None: ...

    def committed(self) -> tuple[int, dict, dict] | None: ...

    def keep(self, name: str, tensors: dict) -> None: ...

    def kept(self, name: str) -> dict: ...


@dataclass
class Member:
    """What the server remembers of a client."""

    facts: dict[str, Any] = field(default_factory=dict)
    base: dict[str, float] | None = None
    final: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    setup_bytes: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    status: str = WAITING


class Session:
    """The members of a run, and the way to them.

    Args:
        run: identity of the run; messages of any other are refused.
        method: name of the method.
        names: the clients, in a fixed order.
        limit: most bytes of an answer.
    """

    def __init__(self, run: str, method: str, names: list[str], transport: Transport, log: RunLog, limit: int) -> None:
        self.run_id, self.method_name, self.transport, self.log, self.limit = run, method, transport, log, limit
        self.members = {name: Member() for name in names}

    def _ask(self, kind: str, payloads: dict[str, Payload], number: int = 0, setup: bool = False
             ) -> Iterator[tuple[str, Message, dict[str, int]]]:  # fmt: skip
        """Send one message to each client and yield the answers that pass every check."""
        requests = {
            name: encode(Message(kind, self.run_id, number, name, self.method_name, payload))
            for name, payload in payloads.items()
        }
        for name, data in self.transport.exchange(requests, fresh=kind in ("join", "resume")):
            try:
                if isinstance(data, Exception):
                    raise data
                message = decode(data, run=self.run_id, limit=self.limit)
                if (message.client, message.round) != (name, number):
                    raise ProtocolError(f"an answer of {message.client} for round {message.round} came from {name}")
                if message.kind == "failure":
                    raise _failure(message.payload.meta)
            except Absent as error:
                self._lose(name, error, number)
                continue
            except ProtocolError as error:
                self._exclude(name, str(error), number)
                continue
            down, up = len(requests[name]), len(data)
            if setup:
                self.members[name].setup_bytes["down"] += down
                self.members[name].setup_bytes["up"] += up
            yield name, message, {"bytes_down": down, "bytes_up": up}

    def _exclude(self, name: str, reason: str, number: int) -> None:
        """A client that failed takes no further part; the others go on if the quorum allows."""
        self.members[name].status = f"{STOPPED}{reason}"
        self.log.event("client_excluded", f"{name}: {reason}", round=number, client=name)
        self.transport.dismiss(name, reason)

    def _stopped(self, name: str) -> bool:
        return self.members[name].status.startswith(STOPPED)

    def _lose(self, name: str, error: Absent, number: int) -> None:
        """A client that gave no answer misses the round; when it is here again, it takes part again."""
        if isinstance(error, Lost):
            self.members[name].status = WAITING
        elif self.members[name].status != WAITING:
            self.members[name].status = f"{AWAY}{error}"
        self.log.event("client_away", f"{name}: {error}", round=number, client=name)

    def _away(self, name: str) -> bool:
        return self.members[name].status.startswith(AWAY)


def _failure(meta: dict[str, Any]) -> ProtocolError:
    """What a client says went wrong."""
    reason = str(meta.get("reason", "failed"))[:500]
    return Lost(reason) if meta.get("rejoin") is True else ProtocolError(reason)
