"""The progress of a run while it trains: a live table, plain lines, JSON lines, or nothing.

The runner reports to a `Progress` and need not know which it is. A training step takes some 20 ms, so a step only
stores numbers; the table is drawn at most 8 times a second, and less often where drawing is slow.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from h2tune.report.lines import JsonView, PlainView, QuietView, clean
from h2tune.report.read import number

if TYPE_CHECKING:
    from rich.console import Console

Mode = Literal["auto", "live", "plain", "json", "quiet"]


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


class View(Protocol):
    """One way of showing a run; every call comes after `State` took it in."""

    def started(self, state: State) -> None: ...
    def moved(self, state: State, row: Row) -> None: ...
    def client_done(self, state: State, row: Row, bytes_up: int, bytes_down: int) -> None: ...
    def round_done(self, state: State, seconds: float) -> None: ...
    def message(self, text: str, level: str) -> None: ...
    def stopped(self, state: State) -> None: ...


class State:
    """The clients, the rounds, and how far they are."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
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


class Progress:
    """Shows a run: `start`, then `phase`, `step`, `client_done`, `round_done` and `message` as it goes, then `stop`.

    `auto` is a live table on a terminal and plain lines elsewhere; `json` writes one object per line and nothing else.
    Safe to call from several threads. A closed pipe ends the output, not the training.
    """

    def __init__(self, mode: Mode = "auto", stream: IO[str] | None = None, console: Console | None = None) -> None:
        stream = stream or sys.stdout
        if mode == "auto":
            mode = "live" if console is not None or stream.isatty() else "plain"
        self.mode = mode
        self._state = State()
        self._lock = threading.RLock()
        self._stopped = False
        self._view = _view(mode, stream, console)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, clients: Sequence[Mapping[str, Any]], rounds: int) -> None:
        """`clients` are mappings with name, model and task."""
        with self._lock:
            self._state.start(clients, rounds)
            self._view.started(self._state)

    def phase(self, client: str, round: int, phase: str) -> None:
        with self._lock:
            self._view.moved(self._state, self._state.row(client, round, phase))

    def step(self, client: str, round: int, phase: str, step: int, steps: int, loss: float | None) -> None:
        with self._lock:
            row = self._state.row(client, round, phase)
            row.step, row.steps, row.loss = step, steps, number(loss)
            self._view.moved(self._state, row)

    def client_done(self, client: str, round: int, metrics: Mapping[str, Any], bytes_up: int, bytes_down: int) -> None:
        """`metrics` is a score ({"metric", "nats"}) or scores by split ({"validation": score, "test": score})."""
        with self._lock:
            row = self._state.row(client, round, "done")
            row.metrics, row.up, row.down = metrics, row.up + bytes_up, row.down + bytes_down
            self._state.finish_client(client, row)
            self._view.client_done(self._state, row, bytes_up, bytes_down)

    def round_done(self, round: int, seconds: float) -> None:
        with self._lock:
            self._state.round = max(self._state.round, round)
            self._view.round_done(self._state, seconds)
            self._state.finish_round(round)

    def message(self, text: str, level: str = "info") -> None:
        with self._lock:
            self._view.message(clean(text), level)

    def stop(self) -> None:
        """Draws the last state and gives the terminal back; harmless when called again."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._view.stopped(self._state)


def _view(mode: Mode, stream: IO[str], console: Console | None) -> View:
    if mode == "live":
        from h2tune.report.table import TableView  # brings in Rich, which the other modes do without

        return TableView(stream, console)
    views = {"plain": PlainView, "json": JsonView, "quiet": QuietView}
    if mode not in views:
        raise ValueError(f"unknown progress mode {mode!r}: auto, live, plain, json or quiet")
    return views[mode](stream)
