"""How clients come into a federation: the first ones together, late joiners between two rounds, returning ones at any time."""

from __future__ import annotations

from h2tune.agreed import agreed
from h2tune.config import Experiment
from h2tune.errors import MethodError, ProtocolError, QuorumError
from h2tune.methods.base import Method, ServerMethod
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import Reply
from h2tune.protocol.schemas import ClientFacts, Introduction, Scores, read
from h2tune.session import Exchanges, Place, Session, Status

ENOUGH_WORDS = 0.5  # share of a client's word occurrences that the anchors should hold


class Admission:
    """Lets clients in and counts whether enough are here.

    Args:
        kind: the method, of which server and clients must have the same version.
        quorum: clients without which no round is committed.
    """

    def __init__(self, experiment: Experiment, kind: Method, session: Session, quorum: int) -> None:
        self.experiment, self.kind, self.session, self.quorum = experiment, kind, session, quorum
        self.joins = {client.name: client.joins for client in experiment.clients}

    def first(self, method: ServerMethod) -> list[str]:
        """Wait for the clients that take part from the start, and set them up; returns those that are ready.

        Raises:
            QuorumError: they are too few.
            MethodError: they do not fit together.
        """
        self.session.put_out(0)
        names = [name for name in self.session.with_status(Status.WAITING) if self.joins[name] <= 1]
        self.session.transport.wait(names, len(names), first=True)
        ready = self._set_up(method, names, 0)
        if len(ready) < self.quorum:
            raise QuorumError(self.shortage(len(ready), "joined"))
        return ready

    def complete(self) -> bool:
        """Whether all that take part from the start have introduced themselves, but for those that are revoked."""
        first = [self.session.members[name] for name, joins in self.joins.items() if joins <= 1]
        return all(m.revoked or (m.facts and m.status is not Status.EXCLUDED) for m in first)

    def returning_and_late(self, method: ServerMethod, number: int) -> bool:
        """Before a round: revoked clients leave, those that were away take their place again, late ones are set up.

        Returns:
            Whether somebody was set up, of whom the last commit knows nothing.
        """
        self.session.put_out(number)
        here, ready = self.session.returned(), False
        self.session.rejoin(here)
        for name in here:  # one by one: nobody is refused for another's sake
            if self.session.members[name].status is Status.WAITING and self.joins[name] <= number:
                try:
                    ready = bool(self._set_up(method, [name], number)) or ready
                except (MethodError, ProtocolError) as error:
                    self.session.exclude(name, str(error), number)
        return ready

    def after_a_restart(self, method: ServerMethod, number: int) -> None:
        """The server has restarted: ask the clients that took part to go on from the committed round."""
        self.session.put_out(number)
        active = self.session.with_status(Status.ACTIVE)
        self.session.transport.wait(active, len(active), first=True)
        for _ in self.session.request("rejoin", {name: method.rejoin(name) for name in active}, Place(number)):
            pass

    def wait_for_quorum(self, shortage: str) -> None:
        """Wait until a quorum is here.

        Raises:
            QuorumError: it does not come, or never can.
        """
        possible = self.session.with_status(Status.ACTIVE, Status.WAITING, Status.AWAY)
        if not self.session.transport.wait(possible, self.quorum):
            raise QuorumError(shortage)

    def shortage(self, count: int, did: str) -> str:
        """Too few clients joined, are here, or answered: the sentence that says so."""
        members = self.session.members
        stopped = {n: m.reason for n, m in members.items() if m.status is Status.EXCLUDED}
        why = "".join(f" The first excluded client, {name}: {reason}" for name, reason in list(stopped.items())[:1])
        return (
            f"Only {count} of {len(members)} clients {did}; quorum is {self.quorum}."
            f" Nothing of this round was committed; the reasons are in events.jsonl.{why}"
        )

    def _set_up(self, method: ServerMethod, names: list[str], number: int) -> list[str]:
        """Let clients introduce themselves, and hand them what is shared; returns those that are ready."""
        ask = Exchanges(self.session, Place(number), setup_ends=self.kind.client.setup_actions[-1])
        common = agreed(self.experiment, method.settings)
        request = Payload(meta={"method": self.kind.actions(method.settings), "agreed": common})
        introductions = ask("join", dict.fromkeys(names, request), lambda reply: self._introduced(method, reply))
        if introductions:
            method.setup(ask, introductions)
        return ask.ready

    def _introduced(self, method: ServerMethod, reply: Reply) -> Payload:
        """Check an introduction and keep what it says of the client."""
        name, meta = reply.client, reply.payload.meta
        member = self.session.members[name]
        member.facts = read(ClientFacts, meta.pop("facts", None))
        member.base = read(Scores, meta.pop("base", None))
        read(Introduction, meta)
        method.check_introduction(name, reply.payload)
        share = member.facts.get("anchor_coverage")
        if share is not None and share < ENOUGH_WORDS:
            text = f"only {share:.0%} of its training words occur in the anchors; add its domain's words to them"
            self.session.log.event("warning", f"{name}: {text}", client=name)
        return reply.payload
