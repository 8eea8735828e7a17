"""The active party's way to the others: the house's session, with every message held against the list of what may cross."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, Protocol

from h2tune.errors import H2TuneError
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Reply
from h2tune.session import EventLog, Exchanges, Member, Place, Session, Status
from h2tune.transport.base import Transport
from h2tune.transport.inprocess import InProcess
from h2tune.vertical.exposure import Sizes, check, check_rows


class NoLog:
    """Tells nobody."""

    def event(self, event: str, text: str, **fields: Any) -> None:
        """Nothing is kept."""


class PartyGone(H2TuneError, RuntimeError):
    """A party left in the middle of a round, which starts again from the last commit."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"{', '.join(names)} did not answer")


class Exchange:
    """The passive parties of a run, and what was asked of them.

    A party that restarts in mid-round is not asked again there, as `Exchanges` could: its gradients of the earlier steps
    are lost with it, and so all parties go back to the last commit together.

    Attributes:
        session: who is here; it reads and checks the answers.
        sizes: what shapes are made of, from the alignment on.
        state: digest of the committed state that the next requests are made from.
        sent, received: bytes of the messages that were answered, by party and kind.
    """

    def __init__(
        self, run: str, method: str, parties: list[str], transport: Transport, log: EventLog, limit: int
    ) -> None:
        self.session = Session(run, method, parties, transport, log, limit, self._places)
        self.sizes, self.round, self.state = Sizes(), 0, ""
        self._begun: Counter[int] = Counter()
        self.sent: dict[str, dict[str, int]] = defaultdict(dict)
        self.received: dict[str, dict[str, int]] = defaultdict(dict)
        self.begin(0)

    @property
    def here(self) -> list[str]:
        """Parties that take part now."""
        return self.session.with_status(Status.ACTIVE)

    @property
    def away(self) -> list[str]:
        """Parties that may come back, and those that have not joined."""
        return self.session.with_status(Status.AWAY, Status.WAITING)

    @property
    def excluded(self) -> dict[str, str]:
        """Parties that answered what they may not, and why."""
        return {name: self.session.members[name].reason for name in self.session.with_status(Status.EXCLUDED)}

    def begin(self, round: int) -> None:
        """Start a round, or start it again: answers to what was asked before are refused from now on."""
        self.round = round
        place = Place(round, self._begun[round], state=self.state)
        self._begun[round] += 1
        self._asks = Exchanges(self.session, place, patient=False, setup_ends="" if round else "align")

    def ask(self, kind: str, payloads: dict[str, Payload]) -> dict[str, Payload]:
        """Send one message to each party and return the answers that pass every check, in the order asked."""
        for name, payload in payloads.items():
            check(kind, "down", payload, self.sizes, name)

        def read(reply: Reply) -> Payload:
            for ways, size in ((self.sent, reply.bytes_down), (self.received, reply.bytes_up)):
                ways[reply.client][kind] = ways[reply.client].get(kind, 0) + size
            answer = check(kind, "up", reply.payload, self.sizes, reply.client)
            if kind == "predict":
                check_rows(payloads[reply.client], answer, reply.client)
            return answer

        answers = self._asks(kind, payloads, read, again=False)
        return {name: answers[name] for name in payloads if name in answers}

    def ask_all(self, kind: str, payloads: dict[str, Payload]) -> dict[str, Payload]:
        """As `ask`, where every answer is needed.

        Raises:
            PartyGone: if one is missing.
        """
        answers = self.ask(kind, payloads)
        if missing := payloads.keys() - answers.keys():
            raise PartyGone(sorted(missing))
        return answers

    def rejoin(self, round: int, returned: list[str]) -> None:
        """Set all parties that are here, and those that have returned, to a committed round."""
        self.begin(round)
        names = [name for name in self.session.members if name in {*self.here, *returned}]
        for name in self.ask("rejoin", self._places(names)[1]):
            if name in returned:
                self.session.activate(name)
                self.session.log.event("client_rejoined", f"{name} takes part again", client=name)

    def _places(self, names: list[str]) -> tuple[int, dict[str, Payload]]:
        """What parties need to take their place as of a committed round."""
        return self.round, {name: Payload(meta={"round": self.round}) for name in names}

    def plain(self) -> dict[str, Any]:
        """Plain values that a commit keeps: who takes part, and what was sent."""
        members = {name: member.plain() for name, member in self.session.members.items()}
        return {"members": members, "sent": dict(self.sent), "received": dict(self.received)}

    def load(self, values: dict[str, Any]) -> None:
        """Stand where a commit left the exchange."""
        self.session.members = {name: Member.from_plain(member) for name, member in values["members"].items()}
        self.sent, self.received = defaultdict(dict, values["sent"]), defaultdict(dict, values["received"])


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
        for name in parties:
            self.session.activate(name)

    def ask(self, kind: str, payloads: dict[str, Payload]) -> dict[str, Payload]:
        """As in `Exchange`."""
        return {name: self.parties[name].answer(kind, self.round, payload) for name, payload in payloads.items()}
