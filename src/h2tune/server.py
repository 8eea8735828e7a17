"""The server: select clients, send them the shared state, collect their updates, average, commit, again.

`Server.run` is the story of a federation. The server knows the method's half that combines updates, and a transport
that carries bytes; it never sees data, models or private factors.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from typing import Any

from h2tune.aggregation.secure_mean import threshold_of
from h2tune.aggregation.secure_round import SecureRound
from h2tune.config import Experiment
from h2tune.methods import MethodError, method_of
from h2tune.protocol.codec import Message, Payload, ProtocolError
from h2tune.protocol.schemas import ClientFacts, FinalScores, Introduction, RoundReport, Scores, read
from h2tune.session import STOPPED, WAITING, Member, RunLog, Session
from h2tune.transport.base import Transport
from h2tune.utils.seeds import derive

ENOUGH_WORDS = 0.5  # share of a client's word occurrences that the anchors should hold
ATTEMPTS = 3  # times that a client which restarts in a round is asked again


class QuorumError(RuntimeError):
    """Too few clients answered for a round to be committed."""


class Server(Session):
    """Runs the rounds of one experiment.

    Args:
        run: identity of the run; messages of any other are refused.
        names: the clients, in a fixed order.
    """

    def __init__(self, experiment: Experiment, run: str, names: list[str], transport: Transport, log: RunLog) -> None:
        method, settings = method_of(experiment)
        super().__init__(run, method.name, names, transport, log, experiment.network.largest)
        self.experiment, self.method = experiment, method.server(experiment, settings)
        self.joins = {client.name: client.joins for client in experiment.clients}
        self.round, self.best, self.waited = 0, math.inf, 0
        self.secret = experiment.secure_aggregation is not None
        self.threshold = threshold_of(experiment) if self.secret else 0
        self.quorum = max(experiment.quorum, self.threshold)
        self.opened, self._shortage = False, ""

    def run(self) -> None:
        """All rounds, from wherever the run stands, to the results."""
        if not self.opened:
            self.open()
        while self.round < self.experiment.rounds and not self.exhausted:
            if reason := self.method.refuses_round():
                self.log.event("run_stopped", f"stopped after round {self.round}: {reason}", round=self.round)
                break
            if not self.one_round():
                self.log.event("quorum_missed", f"{self._shortage}; waiting for more", round=self.round + 1)
                self._need_here()
        self.finish()

    def open(self) -> None:
        """Once: who is there, what their models see in the anchors, the frames that follow."""
        first = [name for name in self.members if self.joins[name] <= 1]
        self.transport.wait(first, len(first), first=True)
        joined = self._admit(first)
        if joined < self.quorum:
            raise QuorumError(self._short(joined))
        self.opened = True
        self.log.keep("frames", self.method.fixed())
        self.log.commit(0, self.method.state(), self.records())
        self.log.event("frames", f"{joined} clients joined; the shared state is set up")

    def _admit(self, names: list[str], number: int = 0) -> int:
        """Let clients join, and hand them the frames; returns how many did."""
        introductions = {}
        for name, message, _ in self._ask("join", {n: Payload() for n in names}, number, setup=True):
            try:
                self.members[name].facts = read(ClientFacts, message.payload.meta.pop("facts", None))
                self.members[name].base = read(Scores, message.payload.meta.pop("base", None))
                read(Introduction, message.payload.meta)
                self.method.check_introduction(name, message.payload)
            except ProtocolError as error:
                self._exclude(name, str(error), number)
                continue
            self._warn_of_strange_words(name)
            introductions[name] = message.payload
        if not introductions:
            return 0
        try:
            described = self._describe(introductions, number)
            introductions = {n: p for n, p in introductions.items() if not self._stopped(n)}
            welcomes = self.method.open(introductions, described) if introductions else {}
        except MethodError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProtocolError(f"The clients do not fit together: {error}") from None
        ready = [name for name, _, _ in self._ask("welcome", welcomes, number, setup=True)]
        for name in ready:
            self.members[name].status = "ok"
        return len(ready)

    def _describe(self, introductions: dict[str, Payload], number: int) -> dict[str, Payload]:
        """Descriptions from those whom the method asks; where one cannot be used, others are asked in his place."""
        described: dict[str, Payload] = {}
        asked: set[str] = set()
        while True:
            left = {n: p for n, p in introductions.items() if not self._stopped(n)}
            wanted = [n for n in self.method.ask(left) if n not in asked] if left else []
            if not wanted:
                return described
            asked |= set(wanted)
            described |= {
                n: m.payload for n, m, _ in self._ask("describe", dict.fromkeys(wanted, Payload()), number, setup=True)
            }
            for name, reason in self.method.misfits(introductions, described).items():
                self._exclude(name, reason, number)
                del described[name]

    def _warn_of_strange_words(self, name: str) -> None:
        share = self.members[name].facts.get("anchor_coverage")
        if share is not None and share < ENOUGH_WORDS:
            text = (
                f"{name}: only {share:.0%} of its training words occur in the anchors; add its domain's words to them"
            )
            self.log.event("warning", text, client=name)

    def one_round(self) -> bool:
        """Select, send, collect, average, commit; False if too few answered and nothing was committed."""
        begin, number = time.perf_counter(), self.round + 1
        self._let_in(number)
        selected = self.select(number)
        self.log.event("round_started", f"round {number}: {', '.join(selected)}", round=number)
        evaluate = number % self.experiment.evaluation.every == 0 or number == self.experiment.rounds
        requests = {name: self.method.download(name) for name in selected}
        for payload in requests.values():
            payload.meta["evaluate"] = evaluate
        self.method.expect(selected)
        self.method.start_round()
        taken = self._collect_in_secret(requests, number) if self.secret else self._collect(requests, number)
        if len(taken) < self.quorum:
            self._shortage = self._short(len(taken))
            return False
        self.method.excluded = sum(map(self._stopped, self.members))
        self.method.finish_round()
        for text in self.method.notices():
            self.log.event("warning", f"round {number}: {text}", round=number)
        self.round = number
        for name, record in taken.items():
            self.members[name].rounds.append(record)
        self._judge_progress()
        self.log.commit(number, self.method.state(), self.records())
        seconds = time.perf_counter() - begin
        spent = self.method.privacy()
        self.log.event("round_committed", f"round {number} committed", round=number, seconds=seconds, privacy=spent)
        return True

    def _collect(self, requests: dict[str, Payload], number: int) -> dict[str, dict[str, Any]]:
        """Fold in the updates as they come; the records of those that count."""
        taken: dict[str, dict[str, Any]] = {}
        # Who restarts has lost his secrets: with masks he is asked again in the next round.
        ask = self._ask if self.secret else self._ask_again
        for name, message, traffic in ask("round", requests, number):
            weight = message.examples if self.experiment.weights == "examples" else 1
            try:
                if message.examples != self.members[name].facts.get("n_train", message.examples):
                    raise ProtocolError(f"it says {message.examples} examples, and said another number when it joined")
                record = read(RoundReport, message.payload.meta.get("record"))
                self.method.add(name, message.payload, weight)
            except ProtocolError as error:
                self._exclude(name, str(error), number)
                continue
            taken[name] = {"round": number} | record | traffic
            self.log.event("client_finished", f"{name} finished round {number}", client=name, **taken[name])
        return taken

    def _collect_in_secret(self, requests: dict[str, Payload], number: int) -> dict[str, dict[str, Any]]:
        """As `_collect`, but the server learns only the sum; nothing counts if too few are left to reveal it."""
        secret = SecureRound(self._ask, self._exclude, self.run_id, number, self.threshold)
        requests = secret.agree(requests)
        self.method.expect_masked(secret.publics, secret.context)
        taken = self._collect(requests, number)
        try:
            if len(taken) < self.threshold:  # asking would be refused, and rightly
                raise ValueError(f"{len(taken)} clients are left, it takes {self.threshold} to reveal a sum")
            self.method.unmask(secret.members, secret.reveal(list(taken)))
        except ValueError as error:
            self.log.event("warning", f"round {number}: {error}", round=number)
            return {}
        for name, record in taken.items():
            record |= {way: record[way] + count for way, count in secret.bytes[name].items()}
        return taken

    def _let_in(self, number: int) -> None:
        """Before a round: late joiners join, and who was away takes his place again."""
        here = self.transport.returned()
        for name in here:
            if self._stopped(name):
                self.transport.dismiss(name, self.members[name].status)
        self._take_back(here)
        if late := [n for n in here if self.members[n].status == WAITING and self.joins[n] <= number]:
            self._admit_late(late, number)

    def _admit_late(self, names: list[str], number: int) -> None:
        """A latecomer that does not fit is not let in; that is no reason to stop the others."""
        for name in names:  # one by one: nobody is refused for another's sake
            try:
                self._admit([name], number)
            except (MethodError, ProtocolError) as error:
                self._exclude(name, str(error), number)

    def _take_back(self, names: list[str]) -> list[str]:
        """Give clients that restarted their place as of the last commit; returns those that took it."""
        names = [name for name in names if self.members[name].status == "ok" or self._away(name)]
        if not names:
            return []
        committed = self.log.committed()
        assert committed is not None
        number, tensors, records = committed
        # Another object of the same class: this round's sums are not to be disturbed.
        method, settings = method_of(self.experiment)
        welcomes = method.server(self.experiment, settings).resume(
            tensors, records["method"], self.log.kept("frames"), names
        )
        back = [name for name, _, _ in self._ask("resume", welcomes, number)]
        for name in back:
            self.members[name].status = "ok"
            self.log.event("client_back", f"{name} takes part again", client=name)
        return back

    def select(self, number: int) -> list[str]:
        """The clients of a round: all that still take part, or a seeded sample of them."""
        alive = [name for name, member in self.members.items() if member.status == "ok"]
        chosen = random.Random(derive(self.experiment.seed, "select", number)).sample(
            alive, min(self.experiment.clients_per_round, len(alive))
        )
        return [name for name in alive if name in chosen]

    def finish(self) -> None:
        """Hand the last shared state to everyone and collect the results."""
        self._take_back(self.transport.returned())
        alive = [name for name, member in self.members.items() if member.status == "ok"]
        requests = {name: self.method.download(name) for name in alive}
        for name, message, _ in self._ask_again("finish", requests, self.round):
            try:
                self.members[name].final = read(FinalScores, message.payload.meta.get("final"))
            except ProtocolError as error:
                self._exclude(name, str(error), self.round)

    def resume(self, round: int, tensors: dict, records: dict, fixed: dict) -> None:
        """Stand where a committed round left the federation."""
        self.round, self.opened = round, True
        self.members = {name: Member(**record) for name, record in records["members"].items()}
        self.best, self.waited = records["best"] if records["best"] is not None else math.inf, records["waited"]
        alive = [name for name, member in self.members.items() if member.status == "ok"]
        self.transport.wait(alive, len(alive), first=True)
        for name, message, _ in self._ask(
            "resume", self.method.resume(tensors, records["method"], fixed, alive), round
        ):
            # Data may have been changed on purpose between the two (--changed data).
            self.members[name].facts["n_train"] = message.examples

    def records(self) -> dict[str, Any]:
        """Plain values that a commit keeps beside the method's tensors."""
        members = {name: dict(vars(member)) for name, member in self.members.items()}
        best = None if math.isinf(self.best) else self.best
        return {"members": members, "best": best, "waited": self.waited, "method": self.method.plain_state()}

    @property
    def exhausted(self) -> bool:
        """Whether `patience` rounds went by without a better mean validation."""
        return self.experiment.patience is not None and self.waited >= self.experiment.patience

    def _ask_again(self, kind: str, payloads: dict[str, Payload], number: int
                   ) -> Iterator[tuple[str, Message, dict[str, int]]]:  # fmt: skip
        """As `_ask`; who restarts meanwhile takes his place again and is asked once more."""
        answered: set[str] = set()
        for _ in range(ATTEMPTS):
            for answer in self._ask(kind, payloads, number):
                answered.add(answer[0])
                yield answer
            back = self._take_back([n for n in self.transport.returned() if n in payloads and n not in answered])
            if not back:
                return
            payloads = {name: payloads[name] for name in back}

    def _short(self, count: int) -> str:
        stopped = {n: m.status.removeprefix(STOPPED) for n, m in self.members.items() if m.status.startswith(STOPPED)}
        why = "".join(f" The first of them, {name}: {reason}" for name, reason in list(stopped.items())[:1])
        return (
            f"Only {count} of {len(self.members)} clients {'answered' if self.opened else 'came'}, the quorum is {self.quorum}."
            f" Nothing of this round was committed; the reasons are in events.jsonl.{why}"
        )

    def _need_here(self) -> None:
        """Wait for a quorum; raises QuorumError if it does not come, or never can."""
        possible = [n for n, m in self.members.items() if m.status in ("ok", WAITING) or self._away(n)]
        if not self.transport.wait(possible, self.quorum):
            raise QuorumError(self._shortage)

    def _judge_progress(self) -> None:
        """Early stop looks at the mean validation loss of this round's clients; test data never decides."""
        values = [
            m.rounds[-1]["validation"]["nats"]
            for m in self.members.values()
            if m.rounds and m.rounds[-1]["round"] == self.round and m.rounds[-1].get("validation")
        ]
        if values:
            mean = sum(values) / len(values)
            self.waited = 0 if mean < self.best else self.waited + 1
            self.best = min(self.best, mean)
