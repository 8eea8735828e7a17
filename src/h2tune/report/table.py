"""Progress as a live table on a terminal, with Rich."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from h2tune.report.format import decimal, duration, plain, size
from h2tune.report.lines import headline
from h2tune.report.state import Row, State

INTERVAL = 1 / 8
LOAD = 0.03  # drawing may take this share of the time
CHROME = 7  # lines on the screen that are not rows of clients


class _Terminal(Console):
    """Rich ends the process on a broken pipe; here only the output ends."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class TableView:
    """One row per client, a bar for the whole run, and messages scrolling above.

    It draws when told of progress, in the caller's thread: a thread of its own would take the interpreter's lock from
    the training.
    """

    def __init__(self, stream: IO[str], console: Console | None = None) -> None:
        self._console = console or _Terminal(file=stream, force_terminal=True, highlight=False, markup=False)
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._due = 0.0
        self._open = True

    def started(self, state: State) -> None:
        self._guard(self._live.start)
        self._draw(state)

    def moved(self, state: State, row: Row) -> None:
        if time.monotonic() >= self._due:
            self._draw(state)

    def client_done(self, state: State, row: Row, bytes_up: int, bytes_down: int) -> None:
        self.moved(state, row)

    def round_done(self, state: State, seconds: float) -> None:
        self._draw(state)

    def message(self, text: str, level: str) -> None:
        line = Text(text) if level == "info" else Text(f"{level}: {text}", style="yellow")
        self._guard(lambda: self._console.print(line))

    def stopped(self, state: State) -> None:
        if self._live.is_started:
            self._guard(lambda: self._live.update(self.screen(state, everything=True)))
            self._open = True  # whatever failed before, the cursor comes back
            self._guard(self._live.stop)

    def screen(self, state: State, everything: bool = False) -> RenderableType:
        """What is on the terminal."""
        return screen(state, self._console, everything)

    def _draw(self, state: State) -> None:
        begin = time.monotonic()
        self._guard(lambda: self._live.update(self.screen(state), refresh=True))
        end = time.monotonic()
        self._due = end + max(INTERVAL, (end - begin) / LOAD)

    def _guard(self, action: Callable[[], object]) -> None:
        """Neither a terminal that went away nor a picture that fails may end the training."""
        if self._open:
            try:
                action()
            except Exception:
                self._open = False


def screen(state: State, console: Console, everything: bool = False) -> Group:
    """What is on the terminal. While running, only as many rows as fit, those that moved last first in line."""
    rows = list(state.rows.values())
    room = len(rows) if everything else max(console.height - CHROME, 3)
    chosen = {id(row) for row in sorted(rows, key=lambda row: row.touched, reverse=True)[:room]}
    table = _table(console.width)
    for row in rows:
        if id(row) in chosen:
            table.add_row(*_cells(row, console.width))
    parts: list[Table | Text] = [table]
    if len(rows) > len(chosen):
        parts.append(Text(f"and {len(rows) - len(chosen)} more clients", style="dim"))
    return Group(*parts, _footer(state))


def _table(width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("client", no_wrap=True, max_width=24, overflow="ellipsis")
    if width >= 100:
        table.add_column("model", no_wrap=True, max_width=22, overflow="ellipsis", style="dim")
        table.add_column("task", no_wrap=True, max_width=14, overflow="ellipsis", style="dim")
    for title in ("round", "phase", "loss", "metric", "up", "down"):
        left = title == "phase"
        table.add_column(title, no_wrap=True, justify="left" if left else "right", min_width=14 if left else None)
    return table


def _cells(row: Row, width: int) -> list[Text]:
    """Plain `Text` throughout: a client called "[red]" is shown as that."""
    phase = f"{row.phase} {row.step}/{row.steps}" if row.steps and row.phase != "done" else row.phase
    style = {"done": "green", "waiting": "dim"}.get(row.phase, "cyan")
    wide = [Text(row.model), Text(row.task)] if width >= 100 else []
    figures = (decimal(row.loss, 3), headline(row.metrics), size(row.up), size(row.down))
    return [
        Text(row.name, style="bold"),
        *wide,
        Text(str(row.round or "-")),
        Text(phase, style=style),
        *(Text(plain(figure)) for figure in figures),
    ]


def _footer(state: State) -> Table:
    grid = Table.grid(padding=(1, 2, 0, 0))
    present = min(max(state.round, 1), state.rounds) if state.rounds else 0
    left = state.time_left
    tail = "done" if state.share >= 1 else plain(f"{duration(left)} left") if left is not None else ""
    elapsed = plain(duration(time.monotonic() - state.since))
    bar = ProgressBar(total=1.0, completed=state.share, width=32, complete_style="cyan", finished_style="green")
    grid.add_row(
        Text(f"round {present} of {state.rounds}"), bar, Text(f"{100 * state.share:.0f} %"), Text(elapsed), Text(tail)
    )
    return grid
