"""The progress of a vertical run: the views of `h2tune.report.live` with a line and a table for each round."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from h2tune.report.format import clean, decimal, plain
from h2tune.report.lines import JsonView, PlainView, QuietView
from h2tune.report.live import Display, Mode
from h2tune.report.state import State, View
from h2tune.report.table import TableView
from h2tune.utils.numbers import number

WIDE = 14  # classes up to which each has a column


def _headline(state: State) -> str:
    """Round, loss and, where it was measured, the score."""
    loss, test = number(state.record.get("loss")), state.record.get("test")
    score = f", balanced accuracy {100 * test['balanced']:.1f} %" if test else ""
    said = "not a number" if loss is None else decimal(loss, 3)
    return plain(f"round {state.round}/{state.rounds}: loss {said}{score}")


class _Plain(PlainView):
    """A line for each round that was scored, and for the first and the last."""

    def round_done(self, state: State, seconds: float) -> None:
        if "test" in state.record or state.round in (1, state.rounds):
            kept = ", ".join(f"{name} {share:.0%}" for name, share in state.record.get("kept", {}).items())
            self._writer.write(clean(_headline(state) + (f"; rows kept: {kept}" if kept else "")))


class _Json(JsonView):
    def round_done(self, state: State, seconds: float) -> None:
        self._put("round", **state.record)


class _Table(TableView):
    """One row for each party: what it keeps of its rows, and how many it has seen of each class."""

    def __init__(
        self, stream: IO[str], console: Console | None, parties: Sequence[str], classes: Sequence[str]
    ) -> None:
        super().__init__(stream, console)
        self._parties, self._classes = parties, classes[:WIDE]

    def round_done(self, state: State, seconds: float) -> None:
        self._guard(self._live.start)
        super().round_done(state, seconds)

    def screen(self, state: State, everything: bool = False) -> RenderableType:
        table = Table(title=Text(_headline(state)), title_justify="left")
        table.add_column("party")
        table.add_column("rows kept", justify="right")
        for name in self._classes:
            table.add_column(Text(clean(name)), justify="right")
        kept, counts = state.record.get("kept", {}), state.record.get("counts") or []
        for index, party in enumerate(self._parties):
            share = number(kept.get(party))
            seen = counts[index] if index < len(counts) else []
            figures = [plain(decimal(number(rows), 0)) for rows in seen[: len(self._classes)]]
            table.add_row(*map(Text, (clean(party), "-" if share is None else f"{share:.0%}", *figures)))
        return table


class Progress(Display):
    """Shows rounds as they are committed, and messages as they come; then `stop`.

    Lines for people go to the standard error, JSON lines to the standard output.
    """

    lines = {"plain": _Plain, "json": _Json, "quiet": QuietView}

    def __init__(
        self, parties: Sequence[str], classes: Sequence[str] | None, mode: Mode = "auto", stream: IO[str] | None = None,
        console: Console | None = None,
    ) -> None:  # fmt: skip
        self.parties, self.classes = parties, classes or ()
        super().__init__(mode, stream or (sys.stdout if mode == "json" else sys.stderr), console)

    def table(self, stream: IO[str], console: Console | None) -> View:
        return _Table(stream, console, self.parties, self.classes)

    def round_done(self, record: Mapping[str, Any], rounds: int) -> None:
        """Show one round."""
        with self._lock:
            self._state.record, self._state.round, self._state.rounds = record, record["round"], rounds
            self._state.finish_round(record["round"])
            self._view.round_done(self._state, record.get("seconds", 0.0))
