"""The progress of a vertical run, whatever its classes are called and however its loss goes."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest
from rich.console import Console

from h2tune.report.vertical_live import Progress

RECORD: dict[str, Any] = {
    "round": 10,
    "loss": 0.5,
    "test": {"balanced": 0.75},
    "kept": {"shop": 0.4},
    "counts": [[3.0, 0.0], [5.0, 7.5]],
}
HOSTILE = ["[/b]", "\x1b[31mred"]


def told(mode: Any, record: dict[str, Any], classes: list[str]) -> str:
    stream = io.StringIO()
    with Progress(["bank", "shop"], classes, mode, stream) as progress:
        progress.message("shop: column [pay]", "warning")
        progress.round_done(record, 20)
    progress.stop()
    return stream.getvalue()


def test_plain_lines() -> None:
    assert told("plain", RECORD, HOSTILE).splitlines() == [
        "warning: shop: column [pay]",
        "round 10/20: loss 0.500, balanced accuracy 75.0 %; rows kept: shop 40%",
    ]


def test_a_plain_line_is_one_line_however_many_parties_there_are() -> None:
    kept = {f"hospital-{index:02d}": 0.5 for index in range(30)}
    lines = told("plain", RECORD | {"kept": kept}, HOSTILE).splitlines()
    assert len(lines) == 2 and lines[1].endswith("hospital-29 50%")


def test_a_loss_that_is_none_is_called_so_and_json_stays_json() -> None:
    diverged = RECORD | {"loss": math.nan, "counts": [[math.inf]], "kept": {}}
    assert told("plain", diverged, []).splitlines()[1] == ("round 10/20: loss not a number, balanced accuracy 75.0 %")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    events = [json.loads(line, parse_constant=refuse) for line in told("json", diverged, []).splitlines()]
    assert [event["event"] for event in events] == ["message", "round", "stop"]
    assert events[0] == {"event": "message", "level": "warning", "text": "shop: column [pay]"}
    assert events[1]["loss"] is None and events[1]["counts"] == [[None]] and events[2]["rounds_done"] == 10


def test_quiet_says_nothing() -> None:
    assert told("quiet", RECORD, HOSTILE) == ""


def terminal() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=100, height=24, color_system=None), stream


def test_the_table_shows_names_as_they_are_and_none_steers_the_terminal() -> None:
    console, stream = terminal()
    with Progress(["bank", "[red]"], HOSTILE, console=console) as progress:
        progress.message("\x1b[31m[/b]", "warning")
        progress.round_done(RECORD | {"kept": {"[red]": 0.4}}, 20)
    last = stream.getvalue().rsplit("round 10/20: loss 0.500", 1)[1]
    assert "[/b]" in last and "\ufffd[31mred" in last and "\x1b[31m" not in stream.getvalue()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in last.splitlines() if line.startswith("│")]
    assert cells == [["bank", "-", "3", "0"], ["[red]", "40%", "5", "8"]]
    assert stream.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_a_picture_that_fails_ends_neither_the_training_nor_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no picture")

    console, stream = terminal()
    progress = Progress(["bank", "shop"], HOSTILE, console=console)
    progress.round_done(RECORD, 20)
    monkeypatch.setattr("h2tune.report.vertical_live.Table", fails)
    progress.round_done(RECORD, 20)
    progress.stop()
    assert stream.getvalue().endswith("\x1b[?25h")
