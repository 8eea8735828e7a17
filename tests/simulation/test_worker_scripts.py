"""Workers of a user's script: it runs once, and no worker outlives it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from federations import small
from h2tune import federation
from h2tune.simulation.workers import Workers
from h2tune.simulation.worker import Worker

print("the script runs", flush=True)
begun = Workers.exchange
def exchange(self, *args, **more):
    print("workers", *[w.process.pid for w in self.workers], flush=True)
    {then}
    return begun(self, *args, **more)
Workers.exchange = exchange
federation.run(small(clients=2, rounds=1, training={{"steps": 1}}), {out!r}, workers=2)
"""


def script(tmp_path: Path, then: str) -> subprocess.Popen[str]:
    """A user's script, which does not ask whether it is the main one."""
    file = tmp_path / "script.py"
    text = SCRIPT.format(tests=str(Path(__file__).parents[1]), out=str(tmp_path / "run"), then=then)
    file.write_text(text)
    return subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_script_runs_once_and_no_worker_outlives_it(tmp_path: Path) -> None:
    process = script(tmp_path, "sys.stdin.close(); __import__('os').kill(__import__('os').getpid(), 9)")
    told, errors = process.communicate(timeout=120)
    assert told.count("the script runs") == 1, errors
    assert process.returncode == -signal.SIGKILL
    numbers = [int(word) for word in told.split("workers", 1)[1].split()]
    assert len(numbers) == 2
    end = time.monotonic() + 30
    while any(alive(number) for number in numbers) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(alive(number) for number in numbers)


def alive(number: int) -> bool:
    """Whether a process is there and no zombie."""
    status = Path(f"/proc/{number}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
