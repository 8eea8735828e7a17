"""What waits to be read is bounded for each sender; none pushes out another."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from h2tune.transport.nvflare.engine_log import TAIL, last_line
from h2tune.transport.nvflare.inbox import HULL, SPARE, Inbox

LARGEST = 1 << 20


def drained(inbox: Inbox) -> list[tuple[str, bytes]]:
    found = []
    while True:
        try:
            found.append(inbox.get(0))
        except queue.Empty:
            return found


def test_who_sends_without_end_fills_no_memory_and_keeps_nobody_out() -> None:
    told: list[str] = []
    inbox, large = Inbox(LARGEST, told.append), b"x" * LARGEST
    taken = [inbox.put("c0", large) for _ in range(100)]
    assert 0 < sum(taken) * LARGEST <= LARGEST + SPARE and not taken[-1]
    assert inbox.put("c1", large)  # the others have their own room
    assert len(told) == 1 and "c0 sends more than is read" in told[0]
    found = drained(inbox)
    assert [name for name, _ in found].count("c0") == sum(taken) and found[-1] == ("c1", large)
    assert inbox.put("c0", large) and drained(inbox) == [("c0", large)]  # read is forgotten


def test_empty_envelopes_count_too() -> None:
    inbox, number = Inbox(LARGEST), 0
    while inbox.put("c0", b""):
        number += 1
    assert number == (LARGEST + SPARE) // HULL


def test_a_largest_answer_fits_after_hours_of_signs_of_life() -> None:
    inbox = Inbox(LARGEST)
    assert all(inbox.put("c0", b"h" * 300) for _ in range(9 * 3600)) and inbox.put("c0", b"a" * LARGEST)


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "engine.log"
    log.write_bytes(b"")
    assert last_line(log) == ""
    with open(log, "wb") as file:
        file.truncate(1 << 30)  # a gigabyte that takes no space
        file.seek(0, 2)
        file.write("\nthe port is täken\n".encode())
    monkeypatch.setattr(Path, "read_text", None)
    assert last_line(log) == "the port is täken"
    log.write_bytes(b"a" * 3 * TAIL)
    assert last_line(log) == "a" * TAIL
