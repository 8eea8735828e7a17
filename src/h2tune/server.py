"""The server: clients join, then round after round the method asks them and combines, and every round is committed.

`Server.run` is the story of a federation. The server knows the method's half that combines updates, and a session that
talks with clients; it never sees data, models or private factors.
"""

from __future__ import annotations

import random
import time
from typing import Any

from torch import Tensor

from h2tune.config import Experiment
from h2tune.errors import MethodError, ProtocolError, QuorumError
from h2tune.methods.base import ServerMethod
from h2tune.methods.registry import method_of
from h2tune.protocol.codec import Payload
from h2tune.protocol.exchange import QuorumMissed, Reply
from h2tune.protocol.schemas import ClientFacts, FinalScores, Introduction, Scores, read
from h2tune.session import ATTEMPTS, Exchanges, Member, Place, RoundInterrupted, RunLog, Session, Status
from h2tune.transport.base import Transport
from h2tune.utils.digest import digest_of
from h2tune.utils.early_stopping import EarlyStopping
from h2tune.utils.seeds import derive

ENOUGH_WORDS = 0.5  # share of a client's word occurrences that the anchors should hold

__all__ = ["QuorumError", "Server"]


class Server:
    """Runs the rounds of one experiment.

    Args:
        run: identity of the run; messages of any other are refused.
        names: the clients, in a fixed order.
    """

    def __init__(self, experiment: Experiment, run: str, names: list[str], transport: Transport, log: RunLog) -> None:
        self.experiment, self.transport, self.log = experiment, transport, log
        self.kind, self.settings = method_of(experiment)
        self.method: ServerMethod = self.kind.server(experiment, self.settings)
        limit = experiment.network.largest
        self.session = Session(run, self.kind.name, names, transport, log, limit, self._rejoin)
        self.joins = {client.name: client.joins for client in experiment.clients}
        self.quorum = max(experiment.quorum, self.method.least)
        self.round, self.state, self.opened = 0, "", False
        self.attempt = 0  # how often the round that is under way was begun before
        self.progress = EarlyStopping(experiment.patience)

    @property
    def members(self) -> dict[str, Member]:
        """What is known of every client."""
        return self.session.members

    @property
    def method_name(self) -> str:
        return self.kind.name

    def run(self) -> None:
        """All rounds, from wherever the run stands, to the results."""
        if not self.opened:
            self.open()
        while self.round < self.experiment.rounds and not self.progress.exhausted:
            if reason := self.method.refuses_round():
                self.log.event("run_stopped", f"stopped after round {self.round}: {reason}", round=self.round)
                break
            if shortage := self.one_round():
                self.log.event("quorum_missed", f"{shortage}; waiting for more", round=self.round + 1)
                self._wait_for_quorum(shortage)
        self.finish()

    # ---- set-up

    def open(self) -> None:
        """Once: clients join, and the method sets up what they share."""
        first = [name for name in self.members if self.joins[name] <= 1]
        self.transport.wait(first, len(first), first=True)
        joined = self.admit(first)
        if len(joined) < self.quorum:
            raise QuorumError(self._short(len(joined), "joined"))
        self.opened = True
        self.log.keep("frames", self.method.fixed())
        self._commit(0)
        self.log.event("frames", f"{len(joined)} clients joined; the shared state is set up")

    def admit(self, names: list[str], number: int = 0) -> list[str]:
        """Let clients join and hand them what is shared; returns those that are ready."""
        kind = self.kind.client.setup_actions[-1]
        ask = Exchanges(self.session, Place(number), setup_ends=kind)
        request = Payload(meta={"method": self.kind.actions()})
        introductions = ask("join", dict.fromkeys(names, request), self._read_introduction)
        if introductions:
            self.method.setup(ask, introductions)
        return ask.ready

    def _read_introduction(self, reply: Reply) -> Payload:
        member, meta = self.members[reply.client], reply.payload.meta
        member.facts = read(ClientFacts, meta.pop("facts", None))
        member.base = read(Scores, meta.pop("base", None))
        read(Introduction, meta)
        self.method.check_introduction(reply.client, reply.payload)
        share = member.facts.get("anchor_coverage")
        if share is not None and share < ENOUGH_WORDS:
            text = f"only {share:.0%} of its training words occur in the anchors; add its domain's words to them"
            self.log.event("warning", f"{reply.client}: {text}", client=reply.client)
        return reply.payload

    # ---- rounds

    def one_round(self) -> str:
        """Select, let the method ask and combine, commit; returns why nothing was committed, or an empty text."""
        for last in [False] * (ATTEMPTS - 1) + [True]:
            start, number = time.perf_counter(), self.round + 1
            self._let_in(number)
            selected = self.select(number)
            if len(selected) < self.quorum:
                return self._short(len(selected), "are here")
            self.log.event("round_started", f"round {number}: {', '.join(selected)}", round=number)
            ask = self._exchanges(number, patient=not last)
            try:
                self.method.run_round(ask, number, selected)
                self._accept(number, ask, time.perf_counter() - start)
                return ""
            except RoundInterrupted as error:
                self.log.event("round_interrupted", f"round {number} begins again: {error} restarted", round=number)
                self.method = self._committed_method()
            except QuorumMissed as error:
                self.log.event("warning", f"round {number}: {error}", round=number)
                self.method = self._committed_method()
                return self._short(len(ask.finished()), "answered")
        return self._short(0, "went through the round without a restart")

    def _exchanges(self, number: int, patient: bool) -> Exchanges:
        """A new attempt at a round."""
        every, place = self.experiment.evaluation.every, Place(number, self.attempt, state=self.state)
        self.attempt += 1
        evaluate = number % every == 0 or number == self.experiment.rounds
        ends = self.kind.client.ends
        return Exchanges(self.session, place, quorum=self.quorum, ends=ends, evaluate=evaluate, patient=patient)

    def _accept(self, number: int, ask: Exchanges, seconds: float) -> None:
        """A round has come to its end: keep and commit it.

        Raises:
            QuorumMissed: too few clients have ended it.
        """
        reports = ask.finished()
        if len(reports) < self.quorum:
            raise QuorumMissed(f"{len(reports)} clients ended it")
        for text in self.method.notices():
            self.log.event("warning", f"round {number}: {text}", round=number)
        self.round, self.attempt = number, 0
        for name, report in reports.items():
            self.members[name].rounds.append(report)
        validated = [report["validation"]["nats"] for report in reports.values() if report.get("validation")]
        self.progress.judge(validated)
        self._commit(number)
        spent = self.method.privacy()
        self.log.event("round_committed", f"round {number} committed", round=number, seconds=seconds, privacy=spent)

    def _let_in(self, number: int) -> None:
        """Before a round: clients that were away rejoin, and late joiners join."""
        here = self.session.returned()
        self.session.take_back(here)
        for name in here:  # one by one: nobody is refused for another's sake
            if self.members[name].status is Status.WAITING and self.joins[name] <= number:
                try:
                    self.admit([name], number)
                except (MethodError, ProtocolError) as error:
                    self.session.exclude(name, str(error), number)

    def select(self, number: int) -> list[str]:
        """The clients of a round: all that still take part, or a seeded sample of them."""
        active = self.session.with_status(Status.ACTIVE)
        chosen = random.Random(derive(self.experiment.seed, "select", number)).sample(
            active, min(self.experiment.clients_per_round, len(active))
        )
        return [name for name in active if name in chosen]

    def finish(self) -> None:
        """Hand the last shared state to everyone and collect the results."""
        self.session.take_back(self.session.returned())
        requests = {name: self.method.download(name) for name in self.session.with_status(Status.ACTIVE)}
        ask = Exchanges(self.session, Place(self.round, state=self.state))

        def keep(reply: Reply) -> None:
            self.members[reply.client].final = read(FinalScores, reply.payload.meta.get("final"))

        ask("finish", requests, keep)

    # ---- what is kept

    def _commit(self, number: int) -> None:
        tensors = self.method.state()
        self.state = digest_of(tensors, number)
        self.log.commit(number, tensors, self.records())

    def records(self) -> dict[str, Any]:
        """Plain values that a commit keeps beside the method's tensors."""
        members = {name: member.plain() for name, member in self.members.items()}
        return {"members": members, "progress": self.progress.plain(), "method": self.method.plain_state()}

    def resume(
        self, round: int, tensors: dict[str, Tensor], records: dict[str, Any], fixed: dict[str, Tensor]
    ) -> None:
        """Stand where a committed round left the federation."""
        self.round, self.opened, self.state = round, True, digest_of(tensors, round)
        self.session.members = {name: Member.from_plain(member) for name, member in records["members"].items()}
        self.progress.load(records["progress"])
        self.method.load(tensors, records["method"], fixed)
        active = self.session.with_status(Status.ACTIVE)
        self.transport.wait(active, len(active), first=True)
        for _ in self.session.request("resume", {name: self.method.rejoin(name) for name in active}, Place(round)):
            pass

    def _committed_method(self) -> ServerMethod:
        """The method as of the last commit: a round that fails leaves nothing behind."""
        committed = self.log.committed()
        assert committed is not None  # the set-up is committed before the first round
        _, tensors, records = committed
        method = self.kind.server(self.experiment, self.settings)
        method.load(tensors, records["method"], self.log.kept("frames"))
        return method

    def _rejoin(self, names: list[str]) -> tuple[int, dict[str, Payload]]:
        # Another object of the same class: the sums of a round under way are not to be disturbed.
        method = self._committed_method()
        return self.round, {name: method.rejoin(name) for name in names}

    def _short(self, count: int, did: str) -> str:
        stopped = {n: m.reason for n, m in self.members.items() if m.status is Status.EXCLUDED}
        why = "".join(f" The first excluded client, {name}: {reason}" for name, reason in list(stopped.items())[:1])
        return (
            f"Only {count} of {len(self.members)} clients {did}; quorum is {self.quorum}."
            f" Nothing of this round was committed; the reasons are in events.jsonl.{why}"
        )

    def _wait_for_quorum(self, shortage: str) -> None:
        """Wait for a quorum; raises QuorumError if it does not come, or never can."""
        possible = self.session.with_status(Status.ACTIVE, Status.WAITING, Status.AWAY)
        if not self.transport.wait(possible, self.quorum):
            raise QuorumError(shortage)
