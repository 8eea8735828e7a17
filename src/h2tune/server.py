"""Federated learning from the server's side: clients join, and round after round the method asks and combines.

Read `Server.run` first, then `Server.one_round`. What a client is asked for and how answers are combined is the method's
(`h2tune.methods`); how a question reaches the clients is the session's (`h2tune.session`); how clients come in is the
admission's (`h2tune.admission`). The server never sees data, models or private factors.
"""

from __future__ import annotations

import random
import time
from functools import partial

from h2tune.admission import Admission
from h2tune.commits import Commits
from h2tune.config import Experiment
from h2tune.errors import QuorumError
from h2tune.methods.base import ServerMethod
from h2tune.methods.registry import method_of
from h2tune.protocol.exchange import QuorumMissed, Reply, RoundInterrupted, RoundSpoiled
from h2tune.protocol.schemas import FinalScores, read
from h2tune.session import ATTEMPTS, Exchanges, Member, Place, RunLog, Session, Status
from h2tune.transport.base import Transport
from h2tune.utils.early_stopping import EarlyStopping
from h2tune.utils.seeds import derive

__all__ = ["QuorumError", "Server"]


class Server:
    """Runs the rounds of one experiment.

    Args:
        run: identity of the run; messages of any other are refused.
        names: the clients, in a fixed order.

    Attributes:
        method: the method's half that asks and combines; it holds what is shared.
        round: the last committed round. state: the digest of what is shared since then.
    """

    def __init__(self, experiment: Experiment, run: str, names: list[str], transport: Transport, log: RunLog) -> None:
        self.experiment, self.log = experiment, log
        self.kind, settings = method_of(experiment)
        self.commits = Commits(log, partial(self.kind.server, experiment, settings))
        self.method: ServerMethod = self.commits.new_method()
        limit = experiment.network.largest
        self.session = Session(run, self.kind.name, names, transport, log, limit, self.commits.rejoining)
        self.quorum = max(experiment.quorum, self.method.least)
        self.admission = Admission(experiment, self.kind, self.session, self.quorum)
        self.round, self.state, self.opened = 0, "", False
        self.attempt = 0  # how often the round that is under way was begun before
        self.left_out: frozenset[str] = frozenset()  # from further attempts at the round that is under way
        self.spoiled = 0  # rounds in a row of which nothing came, and who is to blame is not known
        self.progress = EarlyStopping(experiment.patience)

    @property
    def members(self) -> dict[str, Member]:
        """What is known of every client."""
        return self.session.members

    @property
    def method_name(self) -> str:
        return self.kind.name

    def excluded(self) -> dict[str, str]:
        """Clients that take no part any more, and why."""
        return {name: self.members[name].standing for name in self.session.with_status(Status.EXCLUDED)}

    def fails_again(self) -> bool:
        """Whether a MethodError now would come again with every start: what it rests on does not change."""
        return not self.opened and self.admission.complete()

    def run(self) -> None:
        """All rounds, from wherever the run stands, to the results.

        Raises:
            QuorumError: too few clients are here, and no more can come.
            MethodError: the clients do not fit together.
        """
        if not self.opened:
            self.open()
        while self.round < self.experiment.rounds and not self.progress.exhausted:
            if reason := self.method.refuses_round():
                self.log.event("run_stopped", f"stopped after round {self.round}: {reason}", round=self.round)
                break
            if shortage := self.one_round():
                self.log.event("quorum_missed", f"{shortage}; waiting for more", round=self.round + 1)
                self.admission.wait_for_quorum(shortage)
        self.finish()

    def open(self) -> None:
        """Once: clients join, and the method sets up what they share."""
        joined = self.admission.first(self.method)
        self.opened = True
        self._commit(0)
        found = self.method.found()
        self.log.event(
            "set_up", f"{len(joined)} clients joined; the shared state is set up" + (found and f": {found}")
        )

    def resume(self) -> None:
        """In place of `open`, after a restart: stand where the last committed round left the federation."""
        last = self.commits.last(with_reports=True)
        self.method, self.round, self.state, self.opened = last.method, last.round, last.state, True
        self.session.members = last.members
        self.progress.load(last.progress)
        if last.once > last.round:
            self._pass_over(last.once, "the server was stopped in it")
        self.admission.after_a_restart(self.method, self.round)

    def one_round(self) -> str:
        """Select clients, let the method ask them and combine, commit.

        Returns:
            Why nothing was committed, or an empty text.
        """
        number = self.round + 1
        for patient in [True] * (ATTEMPTS - 1) + [False]:
            start = time.perf_counter()
            if self.admission.returning_and_late(self.method, number):
                self._commit(self.round)  # whatever becomes of this round, it begins again with the late client
            selected = self.select(number)
            if len(selected) < self.quorum:
                return self.admission.shortage(len(selected), "are here")
            self.log.event("round_started", f"round {number}: {', '.join(selected)}", round=number)
            ask = self._begin(number, patient)
            try:
                self.method.run_round(ask, number, selected)
                self._end(number, ask, start)
                return ""
            except (RoundInterrupted, QuorumMissed) as error:
                self.method = self.commits.last().method
                if ask.once:
                    self._pass_over(number, str(error), isinstance(error, RoundSpoiled))
                    return ""
                if isinstance(error, QuorumMissed):
                    self.log.event("warning", f"round {number}: {error}", round=number)
                    return self.admission.shortage(len(ask.finished()), "answered")
                self.left_out |= error.without
                self.log.event("round_interrupted", f"round {number} begins again: {error}", round=number)
        return self.admission.shortage(0, "went through the round without a restart")

    def select(self, number: int) -> list[str]:
        """The clients of a round: all that take part, or a seeded sample of them."""
        here = self.session.with_status(Status.ACTIVE)
        active = [name for name in here if name not in self.left_out]
        active = active if len(active) >= self.quorum else here
        count = min(self.experiment.clients_per_round, len(active))
        chosen = set(random.Random(derive(self.experiment.seed, "select", number)).sample(active, count))
        return [name for name in active if name in chosen]

    def _begin(self, number: int, patient: bool) -> Exchanges:
        """The ``ask`` of an attempt at a round; a patient one waits for clients that restart meanwhile."""
        place = Place(number, self.attempt, state=self.state)
        self.attempt += 1
        evaluate = number % self.experiment.evaluation.every == 0 or number == self.experiment.rounds
        ends = self.kind.client.ends
        once = partial(self._commit, self.round, once=number)
        return Exchanges(
            self.session, place, quorum=self.quorum, ends=ends, evaluate=evaluate, patient=patient, write_down=once
        )

    def _end(self, number: int, ask: Exchanges, start: float) -> None:
        """A round has come to its end: keep the clients' reports and commit.

        Raises:
            QuorumMissed: too few clients have ended it.
            RoundInterrupted: a client that has ended it was revoked.
        """
        ask.check_revoked()
        reports, seconds = ask.finished(), time.perf_counter() - start
        if len(reports) < self.quorum:
            raise QuorumMissed(f"{len(reports)} clients ended it")
        for text in self.method.notices():
            self.log.event("warning", f"round {number}: {text}", round=number)
        for name, report in reports.items():
            self.members[name].rounds.append(report)
        self.progress.judge([r["validation"]["nats"] for r in reports.values() if r.get("validation")])
        self.attempt, self.spoiled, self.left_out = 0, 0, frozenset()
        self._commit(number)
        spent = self.method.privacy()
        self.log.event("round_committed", f"round {number} committed", round=number, seconds=seconds, privacy=spent)

    def _pass_over(self, number: int, reason: str, spoiled: bool = False) -> None:
        """Count a round that failed and must not be begun again as held, with what is shared as it was.

        Raises:
            QuorumError: several rounds in a row were spoiled, and nobody can be excluded for it.
        """
        self.log.event("round_passed_over", f"round {number} is passed over: {reason}", round=number)
        self.attempt, self.spoiled, self.left_out = 0, self.spoiled + spoiled, frozenset()
        self._commit(number)
        if self.spoiled == ATTEMPTS:
            raise QuorumError(f"Nothing came of {ATTEMPTS} rounds in a row. The last, {number}: {reason}")

    def _commit(self, number: int, once: int = 0) -> None:
        self.state = self.commits.write(number, self.method, self.members, self.progress, once)
        self.round = number

    def finish(self) -> None:
        """Hand the last shared state to everyone and collect the final scores."""
        self.session.rejoin(self.session.returned())
        ask = Exchanges(self.session, Place(self.round, state=self.state))

        def keep(reply: Reply) -> None:
            self.members[reply.client].final = read(FinalScores, reply.payload.meta.get("final"))

        ask("finish", {n: self.method.download(n) for n in self.session.with_status(Status.ACTIVE)}, keep)
