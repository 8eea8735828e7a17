"""The server: select clients, send them the shared state, collect their updates, average, commit, again.

`Server.run` is the story of a federation. The server knows the method's half that combines updates, and a transport
that carries bytes; it never sees data, models or private factors.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from h2tune.config import Experiment
from h2tune.methods import MethodError, method_of
from h2tune.seeds import derive
from h2tune.wire import Message, Payload, WireError, decode, encode

ENOUGH_WORDS = 0.5  # share of a client's word occurrences that the anchors should hold
WAITING = "not joined yet"
Reply = tuple[str, bytes | Exception]


class Transport(Protocol):
    """Carries bytes to clients and back; knows no mathematics."""

    def exchange(self, requests: dict[str, bytes]) -> Iterator[Reply]:
        """Deliver one message to each named client and yield the answers as they come, or what went wrong."""


class RunLog(Protocol):
    """Where rounds are committed and events told; see `h2tune.store.RunStore`."""

    def event(self, event: str, text: str, **fields: Any) -> None: ...

    def commit(self, round: int, tensors: dict, records: dict) -> None: ...

    def keep(self, name: str, tensors: dict) -> None: ...


class QuorumError(RuntimeError):
    """Too few clients answered for a round to be committed."""


@dataclass
class Member:
    """What the server remembers of a client."""

    facts: dict[str, Any] = field(default_factory=dict)
    base: dict[str, float] | None = None
    final: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    setup_bytes: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    status: str = WAITING  # then "ok", or "stopped: " and the reason


class Server:
    """Runs the rounds of one experiment.

    Args:
        run: identity of the run; messages of any other are refused.
        names: the clients, in a fixed order.
    """

    def __init__(self, experiment: Experiment, run: str, names: list[str], transport: Transport, log: RunLog) -> None:
        method, settings = method_of(experiment)
        self.method = method.server(experiment, settings)
        self.method_name = method.name
        self.experiment, self.run_id, self.transport, self.log = experiment, run, transport, log
        self.members = {name: Member() for name in names}
        self.joins = {client.name: client.joins for client in experiment.clients}
        self.round, self.best, self.waited = 0, math.inf, 0

    def run(self) -> None:
        """All rounds, from wherever the run stands, to the results."""
        if self.round == 0:
            self.open()
        while self.round < self.experiment.rounds and not self.exhausted:
            if reason := self.method.refuses_round():
                self.log.event("run_stopped", f"stopped after round {self.round}: {reason}", round=self.round)
                break
            self.one_round()
        self.finish()

    def open(self) -> None:
        """Once: who is there, what their models see in the anchors, the frames that follow."""
        first = [name for name in self.members if self.joins[name] <= 1]
        self._need(self._admit(first))
        self.log.keep("frames", self.method.fixed())
        self.log.event("frames", f"{len(first)} clients joined; the shared state is set up")

    def _admit(self, names: list[str], number: int = 0) -> int:
        """Let clients join, and hand them the frames; returns how many did."""
        introductions = {}
        for name, message, _ in self._ask("join", {n: Payload() for n in names}, number, setup=True):
            self.members[name].facts = message.payload.meta.pop("facts", {})
            self.members[name].base = message.payload.meta.pop("base", None)
            self._warn_of_strange_words(name)
            introductions[name] = message.payload
        asked = {n: Payload() for n in self.method.ask(introductions)}
        described = {n: m.payload for n, m, _ in self._ask("describe", asked, number, setup=True)}
        try:
            welcomes = self.method.open(introductions, described)
        except MethodError:
            raise
        except (ValueError, KeyError) as error:
            raise WireError(f"The clients do not fit together: {error}") from None
        ready = [name for name, _, _ in self._ask("welcome", welcomes, number, setup=True)]
        for name in ready:
            self.members[name].status = "ok"
        return len(ready)

    def _warn_of_strange_words(self, name: str) -> None:
        share = self.members[name].facts.get("anchor_coverage")
        if share is not None and share < ENOUGH_WORDS:
            text = (
                f"{name}: only {share:.0%} of its training words occur in the anchors; add its domain's words to them"
            )
            self.log.event("warning", text, client=name)

    def one_round(self) -> None:
        """Select, send, collect, average, commit."""
        begin, number = time.perf_counter(), self.round + 1
        if late := [n for n, m in self.members.items() if m.status == WAITING and self.joins[n] <= number]:
            self._admit(late, number)
        selected = self.select(number)
        self.log.event("round_started", f"round {number}: {', '.join(selected)}", round=number)
        evaluate = number % self.experiment.evaluation.every == 0 or number == self.experiment.rounds
        requests = {name: self.method.download(name) for name in selected}
        for payload in requests.values():
            payload.meta["evaluate"] = evaluate
        self.method.expect(selected)
        self.method.start_round()
        taken = 0
        for name, message, traffic in self._ask("round", requests, number):
            weight = message.examples if self.experiment.weights == "examples" else 1
            try:
                self.method.add(name, message.payload, weight)
            except WireError as error:
                self._exclude(name, str(error), number)
                continue
            self._record(name, number, message, traffic)
            taken += 1
        self._need(taken)
        self.method.finish_round()
        for text in self.method.notices():
            self.log.event("warning", f"round {number}: {text}", round=number)
        self.round = number
        self._judge_progress()
        self.log.commit(number, self.method.state(), self.records())
        seconds = time.perf_counter() - begin
        spent = self.method.privacy()
        self.log.event("round_committed", f"round {number} committed", round=number, seconds=seconds, privacy=spent)

    def select(self, number: int) -> list[str]:
        """The clients of a round: all that still take part, or a seeded sample of them."""
        alive = [name for name, member in self.members.items() if member.status == "ok"]
        count = max(1, round(self.experiment.participation * len(self.members)))
        chosen = random.Random(derive(self.experiment.seed, "select", number)).sample(alive, min(count, len(alive)))
        return [name for name in alive if name in chosen]

    def finish(self) -> None:
        """Hand the last shared state to everyone and collect the results."""
        alive = [name for name, member in self.members.items() if member.status == "ok"]
        requests = {name: self.method.download(name) for name in alive}
        for name, message, _ in self._ask("finish", requests, self.round):
            self.members[name].final = message.payload.meta.get("final")

    def resume(self, round: int, tensors: dict, records: dict, fixed: dict) -> None:
        """Stand where a committed round left the federation."""
        self.round = round
        self.members = {name: Member(**record) for name, record in records["members"].items()}
        self.best, self.waited = records["best"] if records["best"] is not None else math.inf, records["waited"]
        alive = [name for name, member in self.members.items() if member.status == "ok"]
        for _ in self._ask("resume", self.method.resume(tensors, records["method"], fixed, alive), round):
            pass

    def records(self) -> dict[str, Any]:
        """Plain values that a commit keeps beside the method's tensors."""
        members = {name: dict(vars(member)) for name, member in self.members.items()}
        best = None if math.isinf(self.best) else self.best
        return {"members": members, "best": best, "waited": self.waited, "method": self.method.plain_state()}

    @property
    def exhausted(self) -> bool:
        """Whether `patience` rounds went by without a better mean validation."""
        return self.experiment.patience is not None and self.waited >= self.experiment.patience

    def _ask(self, kind: str, payloads: dict[str, Payload], number: int = 0, setup: bool = False
             ) -> Iterator[tuple[str, Message, dict[str, int]]]:  # fmt: skip
        """Send one message to each client and yield the answers that pass every check."""
        requests = {
            name: encode(Message(kind, self.run_id, number, name, self.method_name, payload))
            for name, payload in payloads.items()
        }
        for name, data in self.transport.exchange(requests):
            try:
                if isinstance(data, Exception):
                    raise data
                message = decode(data, run=self.run_id)
                if (message.client, message.round) != (name, number):
                    raise WireError(f"an answer of {message.client} for round {message.round} came from {name}")
                if message.kind == "failure":
                    raise WireError(str(message.payload.meta.get("reason", "failed")))
            except WireError as error:
                self._exclude(name, str(error), number)
                continue
            down, up = len(requests[name]), len(data)
            if setup:
                self.members[name].setup_bytes["down"] += down
                self.members[name].setup_bytes["up"] += up
            yield name, message, {"bytes_down": down, "bytes_up": up}

    def _exclude(self, name: str, reason: str, number: int) -> None:
        """A client that failed takes no further part; the others go on if the quorum allows."""
        self.members[name].status = f"stopped: {reason}"
        self.log.event("client_excluded", f"{name}: {reason}", round=number, client=name)

    def _need(self, count: int) -> None:
        if count < self.experiment.quorum:
            raise QuorumError(
                f"Only {count} of {len(self.members)} clients answered, the quorum is {self.experiment.quorum}."
                " Nothing of this round was committed; see the reasons in events.jsonl."
            )

    def _record(self, name: str, number: int, message: Message, traffic: dict[str, int]) -> None:
        record = {"round": number} | message.payload.meta.get("record", {}) | traffic
        self.members[name].rounds.append(record)
        self.log.event("client_finished", f"{name} finished round {number}", client=name, **record)

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
