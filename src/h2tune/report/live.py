"""The progress of a run while it trains: a live table, plain lines, JSON lines, or nothing.

The runner reports to a `Progress` and need not know which it is. A training step takes some 20 ms, so a step only
stores numbers; the table is drawn at most 8 times a second, and less often where drawing is slow.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from h2tune.report.format import clean
from h2tune.report.lines import JsonView, PlainView, QuietView
from h2tune.report.state import State, View
from h2tune.utils.numbers import number

if TYPE_CHECKING:
    from rich.console import Console

Mode = Literal["auto", "live", "plain", "json", "quiet"]
SILENCE = 5.0  # seconds without a line after which a detail is worth one


class Display:
    """What progress of every kind has: a mode, the view of it, messages, and an end.

    `auto` is a live table on a terminal and plain lines elsewhere; `json` writes one object per line and nothing else.
    Safe to call from several threads. A closed pipe ends the output, not the training.
    """

    lines: Mapping[str, Callable[[IO[str]], View]] = {"plain": PlainView, "json": JsonView, "quiet": QuietView}

    def __init__(self, mode: Mode = "auto", stream: IO[str] | None = None, console: Console | None = None) -> None:
        stream = stream or sys.stdout
        if mode == "auto":
            mode = "live" if console is not None or stream.isatty() else "plain"
        if mode != "live" and mode not in self.lines:
            raise ValueError(f"There is no progress mode {mode!r}; choose auto, live, plain, json or quiet.")
        self.mode = mode
        self._state = State()
        self._lock = threading.RLock()
        self._stopped = False
        self._spoke = time.monotonic()
        self._view = self.table(stream, console) if mode == "live" else self.lines[mode](stream)

    def table(self, stream: IO[str], console: Console | None) -> View:
        """The view on a terminal."""
        from h2tune.report.table import TableView  # brings in Rich, which the other modes do without

        return TableView(stream, console)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def message(self, text: str, level: str = "info") -> None:
        """A line for people; of level `detail` only where nothing was said for `SILENCE`, so that nobody thinks it hangs."""
        with self._lock:
            now = time.monotonic()
            if level == "detail" and self.mode != "json" and now - self._spoke < SILENCE:
                return
            self._view.message(clean(text), "info" if level == "detail" else level)
            self._spoke = now

    def stop(self) -> None:
        """Shows the last state and gives the terminal back; never raises, and is harmless when called again."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._view.stopped(self._state)


class Progress(Display):
    """Shows a run: `start`, then `phase`, `step`, `client_done`, `round_done` and `message` as it goes, then `stop`."""

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
            if self._state.finished(client, round):
                return  # a worker's words may come after its answer
            row = self._state.row(client, round, phase)
            row.step, row.steps, row.loss = step, steps, number(loss)
            self._view.moved(self._state, row)

    def client_done(
        self,
        client: str,
        round: int,
        metrics: Mapping[str, Any],
        bytes_up: int,
        bytes_down: int,
        loss: float | None = None,
    ) -> None:
        """`metrics` is a score ({"metric", "nats"}) or scores by split ({"validation": score, "test": score}).

        loss: of the round, shown where no step was, as over a network.
        """
        with self._lock:
            row = self._state.row(client, round, "done")
            row.loss = number(loss) if row.loss is None else row.loss
            row.metrics, row.up, row.down = metrics, row.up + bytes_up, row.down + bytes_down
            self._state.finish_client(client, row)
            self._view.client_done(self._state, row, bytes_up, bytes_down)
            self._spoke = time.monotonic()

    def round_done(self, round: int, seconds: float) -> None:
        with self._lock:
            self._state.round = max(self._state.round, round)
            self._view.round_done(self._state, seconds)
            self._state.finish_round(round)
