"""What is known of a run while it trains: the clients, the rounds, and how far they are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from h2tune.report.format import clean


@dataclass
class Row:
    """What is known of one client now. `client` is its name as given, `name` the same made safe to print."""

    client: str
    name: str
    model: str
    task: str
    round: int = 0
    phase: str = "waiting"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    up: int = 0
    down: int = 0
    touched: float = 0.0
    phases: list[str] = field(default_factory=list)


class State:
    """The clients, the rounds, and how far they are."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.record: Mapping[str, Any] = {}  # of the last round, in a vertical federation: it has no rows
        self.rounds = 0
        self.round = 0
        self.rounds_done = 0
        self.first_round = 1
        self.since = time.monotonic()
        self.done: set[str] = set()
        self._expected = 1
        self._phases = 2

    def start(self, clients: Sequence[Mapping[str, Any]], rounds: int) -> None:
        # A baseline's rounds may have come before: every start counts afresh.
        self.rows, self.round, self.rounds_done, self.first_round, self.done = {}, 0, 0, 1, set()
        for client in clients:
            name, model, task = (str(client.get(key, "")) for key in ("name", "model", "task"))
            self.rows[name] = Row(name, clean(name), clean(model), clean(task))
        self.rounds, self._expected, self.since = rounds, max(len(self.rows), 1), time.monotonic()

    def row(self, client: str, round: int, phase: str) -> Row:
        """The client's row, moved to this round and phase. A late joiner gets a row of its own."""
        row = self.rows.setdefault(client, Row(client, clean(client), "", ""))
        if not self.round:  # a resumed run starts in the middle: time left is reckoned from what this process did
            self.first_round, self.rounds_done = round, round - 1
        self.round = max(self.round, round)
        if round != row.round:
            row.round, row.phases, row.loss = round, [], None
        if phase not in row.phases:
            row.phases.append(phase)
            row.step = row.steps = 0
        row.phase, row.touched = clean(phase), time.monotonic()
        return row

    def finished(self, client: str, round: int) -> bool:
        """Whether the client has done this round already."""
        row = self.rows.get(client)
        return row is not None and row.phase == "done" and round <= row.round

    def finish_client(self, client: str, row: Row) -> None:
        self._phases = max(len(row.phases) - 1, 1)
        self.done.add(client)

    def finish_round(self, round: int) -> None:
        self.rounds_done = max(self.rounds_done, round)
        self._expected = max(len(self.done), 1)
        self.done.clear()

    @property
    def share(self) -> float:
        """Done share of all rounds. With client sampling a round is taken to have as many clients as the last one."""
        if not self.rounds:
            return 0.0
        under_way = sum(self._part(row) for name, row in self.rows.items() if name not in self.done)
        current = min((len(self.done) + under_way) / max(self._expected, 1), 1.0)
        return min((self.rounds_done + (current if self.round > self.rounds_done else 0.0)) / self.rounds, 1.0)

    @property
    def time_left(self) -> float | None:
        before = (self.first_round - 1) / self.rounds if self.rounds else 0.0
        worked = self.share - before
        return (time.monotonic() - self.since) * (1 - self.share) / worked if worked > 0.01 else None

    def _part(self, row: Row) -> float:
        """Share of its round that a client has behind it, from its phases and the step in the present one."""
        if row.round <= self.rounds_done or not row.phases:
            return 0.0
        inside = row.step / row.steps if row.steps else 0.0
        return min((len(row.phases) - 1 + inside) / max(self._phases, len(row.phases)), 0.99)


class View(Protocol):
    """One way of showing a run; every call comes after `State` took it in."""

    def started(self, state: State) -> None: ...
    def moved(self, state: State, row: Row) -> None: ...
    def client_done(self, state: State, row: Row, bytes_up: int, bytes_down: int) -> None: ...
    def round_done(self, state: State, seconds: float) -> None: ...
    def message(self, text: str, level: str) -> None: ...
    def stopped(self, state: State) -> None: ...
