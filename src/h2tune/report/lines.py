"""Progress as lines: for a log file, for another program, or for nobody."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import IO, Any

from h2tune.report.format import MISSING, decimal, duration, percent, plain, size
from h2tune.report.state import Row, State
from h2tune.utils.numbers import finite, number

STEP_SECONDS = 1.0  # a program that reads JSON lines sees a step at most this often


def headline(metrics: Mapping[str, Any]) -> str:
    """The one figure to show: the metric where there is one, else the nats; of validation data where there is both."""
    for score in (metrics, metrics.get("validation"), metrics.get("test")):
        if isinstance(score, Mapping):
            if (metric := number(score.get("metric"))) is not None:
                return percent(metric)
            if (nats := number(score.get("nats"))) is not None:
                return f"{decimal(nats)} nats"
    return MISSING


class _Writer:
    """Writes whole lines at once and falls silent when nobody reads any more."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._open = True

    def write(self, line: str) -> None:
        if not self._open:
            return
        try:
            self._put(line)
        except (OSError, ValueError):
            self._open = False

    def _put(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
        except UnicodeEncodeError:  # a log in an old encoding
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            self._stream.write(line.encode(encoding, errors="replace").decode(encoding) + "\n")
        self._stream.flush()


class QuietView:
    """Shows nothing; also the base of the views that show little."""

    def __init__(self, stream: IO[str]) -> None:
        self._writer = _Writer(stream)

    def started(self, state: State) -> None: ...

    def moved(self, state: State, row: Row) -> None: ...

    def client_done(self, state: State, row: Row, bytes_up: int, bytes_down: int) -> None: ...

    def round_done(self, state: State, seconds: float) -> None: ...

    def message(self, text: str, level: str) -> None: ...

    def stopped(self, state: State) -> None: ...


class PlainView(QuietView):
    """One line for each client and round that is finished, flushed, for logs."""

    def started(self, state: State) -> None:
        clients = "1 client" if len(state.rows) == 1 else f"{len(state.rows)} clients"
        self._writer.write(f"{clients}, {state.rounds} {'round' if state.rounds == 1 else 'rounds'}")

    def client_done(self, state: State, row: Row, bytes_up: int, bytes_down: int) -> None:
        parts = (
            f"round {row.round}/{state.rounds}",
            row.name,
            f"loss {decimal(row.loss, 3)}",
            headline(row.metrics),
            f"up {size(bytes_up)}",
            f"down {size(bytes_down)}",
        )
        self._writer.write(plain("  ".join(parts)))

    def round_done(self, state: State, seconds: float) -> None:
        done = f"round {state.round}/{state.rounds}  done in {duration(seconds)}"
        left = (state.rounds - state.round) * seconds
        self._writer.write(plain(done + (f"  about {duration(left)} left" if left else "")))

    def message(self, text: str, level: str) -> None:
        self._writer.write(text if level == "info" else f"{level}: {text}")


class JsonView(QuietView):
    """One JSON object per line and nothing else; what is not a finite number is null."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self._last: dict[str, tuple[int, int, float]] = {}

    def started(self, state: State) -> None:
        clients = [{"name": name, "model": row.model, "task": row.task} for name, row in state.rows.items()]
        self._put("start", rounds=state.rounds, clients=clients)

    def moved(self, state: State, row: Row) -> None:
        """A phase that is new in its round at once; all else, phases that alternate too, at most once a second."""
        round, phases, when = self._last.get(row.client, (0, 0, 0.0))
        now = time.monotonic()
        if (round, phases) == (row.round, len(row.phases)) and now - when < STEP_SECONDS:
            return
        self._last[row.client] = (row.round, len(row.phases), now)
        step = {"step": row.step, "steps": row.steps, "loss": row.loss} if row.steps else {}
        self._put("phase", client=row.client, round=row.round, phase=row.phase, **step)

    def client_done(self, state: State, row: Row, bytes_up: int, bytes_down: int) -> None:
        fields = {"loss": row.loss, "metrics": row.metrics, "bytes_up": bytes_up, "bytes_down": bytes_down}
        self._put("client_done", client=row.client, round=row.round, **fields)

    def round_done(self, state: State, seconds: float) -> None:
        self._put("round_done", round=state.round, rounds=state.rounds, seconds=seconds)

    def message(self, text: str, level: str) -> None:
        self._put("message", level=level, text=text)

    def stopped(self, state: State) -> None:
        self._put("stop", rounds_done=state.rounds_done)

    def _put(self, event: str, **fields: Any) -> None:
        self._writer.write(json.dumps({"event": event, **finite(fields)}, default=str))
