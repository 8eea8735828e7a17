from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from h2tune.report.live import Progress
from h2tune.report.state import State

CLIENTS = [
    {"name": "hospital", "model": "zoo:llama", "task": "gsm8k"},
    {"name": "[red]bank\x1b[2J", "model": "zoo:gemma", "task": "aqua"},
]


def play(progress: Progress, rounds: int = 2, steps: int = 3) -> None:
    progress.start(CLIENTS, rounds)
    for index in range(1, rounds + 1):
        for client in CLIENTS:
            for phase in ("shared", "specific"):
                progress.phase(client["name"], index, phase)
                for step in range(1, steps + 1):
                    progress.step(client["name"], index, phase, step, steps, 1.0 / step)
            progress.client_done(
                client["name"], index, {"validation": {"metric": 0.5, "nats": math.nan}}, 24_620, 1_000
            )
        progress.round_done(index, 2.0)
    progress.message("look\x1b]0;out", "warning")
    progress.stop()
    progress.stop()


def terminal(width: int = 110, height: int = 24) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    play(Progress(stream=stream))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "2 clients, 2 rounds"
    assert lines[1] == "round 1/2  hospital  loss 0.333  50.0 %  up 24.6 kB  down 1.0 kB"
    assert len(lines) == 1 + 2 * 3 + 1
    assert "\x1b" not in stream.getvalue() and lines[-1].startswith("warning: look")


def test_json_is_one_object_a_line_without_nan() -> None:
    stream = io.StringIO()
    play(Progress("json", stream=stream))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    events = [json.loads(line, parse_constant=refuse) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events].count("client_done") == 4
    assert events[0]["clients"][1]["name"] == CLIENTS[1]["name"]
    done = next(event for event in events if event["event"] == "client_done")
    assert done["metrics"] == {"validation": {"metric": 0.5, "nats": None}} and done["bytes_up"] == 24_620
    assert events[-2] == {"event": "message", "level": "warning", "text": "look\ufffd]0;out"}


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    play(Progress("quiet", stream=stream))
    assert stream.getvalue() == ""


def test_live_table_on_a_terminal() -> None:
    console = terminal()
    play(Progress(console=console))
    last = output(console).rsplit("client", 1)[1]
    assert "hospital" in last and "49.2 kB" in last and "round 2 of 2" in last and "100 %" in last
    assert "[red]bank\ufffd[2J" in last and "\x1b[2Jbank" not in output(console)
    assert output(console).endswith("\x1b[?25h")  # the cursor is back


def test_an_update_that_is_told_after_the_clients_answer_changes_nothing() -> None:
    """In a worker's process the two take different ways."""
    progress = Progress("quiet")
    progress.start([{"name": "a", "model": "m", "task": "t"}], 2)
    progress.step("a", 1, "shared", 1, 2, 0.5)
    progress.client_done("a", 1, {}, 1, 1)
    for late in ("before", "after"):
        progress.step("a", 1, "shared", 2, 2, 0.5)
        row = progress._state.rows["a"]
        assert (row.phase, row.round) == ("done", 1), late
        progress.round_done(1, 1.0)
    progress.step("a", 2, "shared", 1, 2, 0.5)
    assert (row.phase, row.round) == ("shared", 2)


def test_many_clients_leave_room_for_the_footer() -> None:
    console = terminal(width=80, height=20)
    progress = Progress("live", console=console)
    progress.start([{"name": f"site-{index}", "model": "m", "task": "t"} for index in range(60)], 2)
    progress.step("site-59", 1, "shared", 1, 2, 0.5)
    time.sleep(0.13)
    before = len(output(console))
    progress.round_done(1, 1.0)
    screen = output(console)[before:]
    assert "site-59" in screen and "more clients" in screen and "round 1 of 2" in screen
    progress.stop()
    assert all(f"site-{index} " in output(console) for index in range(60))


def test_a_step_costs_little_and_draws_seldom() -> None:
    console = terminal()
    progress = Progress("live", console=console)
    progress.start(CLIENTS, 1)
    begin = time.perf_counter()
    for step in range(1000):
        progress.step("hospital", 1, "shared", step, 1000, 0.5)
    seconds = time.perf_counter() - begin
    drawn = output(console).count("hospital")
    progress.stop()
    assert drawn <= 2 + 8 * seconds
    assert seconds < 1.0  # 1 ms of a step of 20


def test_time_left_counts_rounds_phases_and_steps() -> None:
    state = State()
    state.start(CLIENTS, 2)
    row = state.row("hospital", 1, "shared")
    row.step, row.steps = 5, 10
    assert state.share == pytest.approx(0.25 / 2 / 2)
    state.finish_client("hospital", state.row("hospital", 1, "done"))
    assert state.share == pytest.approx(1 / 2 / 2)
    state.finish_round(1)
    assert state.share == pytest.approx(0.5)


def test_a_resumed_run_reckons_from_where_it_starts() -> None:
    state = State()
    state.start(CLIENTS, 10)
    state.row("hospital", 9, "shared")
    assert state.share == pytest.approx(0.8) and state.time_left is None


def test_a_closed_pipe_does_not_stop_the_training() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    for mode in ("plain", "json", "live"):
        play(Progress(mode, stream=Closed()))  # type: ignore[arg-type]


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="There is no progress mode 'loud'"):
        Progress("loud")  # type: ignore[arg-type]


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, h2tune.report, h2tune.report.live as live; live.Progress('json');"
        "print({'rich', 'jinja2', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("mode", "said"), [("plain", ["b", "d", "e"]), ("json", ["a", "b", "c", "d", "e"])])
def test_a_detail_is_a_line_only_where_nothing_was_said_for_long(
    mode: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("h2tune.report.live.time", SimpleNamespace(monotonic=lambda: now[0]))
    stream = io.StringIO()
    progress = Progress(mode, stream)
    for text, level, later in [
        ("a", "detail", 1),
        ("b", "info", 1),
        ("c", "detail", 4),
        ("d", "detail", 6),
        ("e", "info", 0),
    ]:
        now[0] += later
        progress.message(text, level)
    lines = stream.getvalue().splitlines()
    assert [json.loads(line)["text"] for line in lines] == said if mode == "json" else lines == said
