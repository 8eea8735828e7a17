"""Runs programs that a model wrote, in a limited child process behind an allow-list; nothing is run in this process.

First the syntax tree is checked (``allowlist``), and then the compiled code. What passes runs in a child without
environment, in an empty folder, in its own session, not as root where the system allows that, with limits on memory, processor time, files and
processes, and with only the allowed built-ins in reach (``_child``). The parent kills it when its time is over and reads a bounded answer.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from h2tune.tasks.allowlist import CALLS, MATH_NAMES, Refused, check_program, prepare

__all__ = ["check_program", "run_program", "run_programs"]

_CHILD = Path(__file__).with_name("_child.py")
_BATCH = 200
# So many programs may use up their time before the others of a call get a tenth of it: a hundred that never end are told in
# less than a minute.
_PATIENCE = 10
# One result is at most 1000 characters of up to 4 bytes, in hexadecimal.
_LONGEST_LINE = 9000


def run_program(source: str, *, timeout: float = 2.0, memory_mb: int = 256) -> str | None:
    """Text of the program's ``answer``, or of the last value that it printed; None when refused or failed.

    timeout: seconds of wall clock. memory_mb: address space of the child, in MiB.
    """
    return run_programs([source], timeout=timeout, memory_mb=memory_mb)[0]


def run_programs(sources: Sequence[str], *, timeout: float = 2.0, memory_mb: int = 256) -> list[str | None]:
    """The same for many programs, one after another; they share a child until one of them fails hard."""
    results: list[str | None] = [None] * len(sources)
    waiting: list[tuple[int, str]] = []
    for index, source in enumerate(sources):
        try:
            waiting.append((index, prepare(source)))
        except Refused:
            continue
    failed = 0
    while waiting:
        batch = waiting[:_BATCH]
        allowed = timeout if failed < _PATIENCE else timeout / 10
        values, alive = _run_batch([source for _, source in batch], allowed, memory_mb)
        failed += not alive
        for (index, _), value in zip(batch, values, strict=False):
            results[index] = value
        # The program in which the child died stays without a value; a new child takes over behind it.
        waiting = waiting[len(values) + (0 if alive else 1) :]
    return results


def _run_batch(sources: Sequence[str], timeout: float, memory_mb: int) -> tuple[list[str | None], bool]:
    """Values of the programs up to the first that killed its child, and whether all of them came through."""
    command = [sys.executable, "-I", "-S", str(_CHILD), ",".join(sorted(MATH_NAMES)), ",".join(sorted(CALLS))]
    with tempfile.TemporaryDirectory(prefix="program-") as folder, tempfile.TemporaryFile() as programs:
        programs.write(json.dumps(sources).encode())
        programs.seek(0)
        child = subprocess.Popen(
            [*command, str(timeout), str(memory_mb)],
            stdin=programs,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            return _read_values(child, len(sources), timeout)
        finally:
            _kill(child)


def _read_values(child: subprocess.Popen[bytes], count: int, timeout: float) -> tuple[list[str | None], bool]:
    assert child.stdout is not None
    values: list[str | None] = []
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        deadline = time.monotonic() + timeout
        while len(values) < count and len(rest) <= _LONGEST_LINE:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                break
            chunk = os.read(child.stdout.fileno(), _LONGEST_LINE)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            values += [_value(line) for line in lines]
            if lines:
                deadline = time.monotonic() + timeout
    return values[:count], len(values) >= count


def _value(line: bytes) -> str | None:
    try:
        return bytes.fromhex(line[1:].decode()).decode() if line.startswith(b"=") else None
    except ValueError:
        return None


def _kill(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        child.kill()
    child.wait()
    if child.stdout is not None:
        child.stdout.close()
