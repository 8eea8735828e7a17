"""What a watcher hears of clients that train in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from federations import small

from h2tune import federation
from h2tune.simulation.processes import Teller, listen


class Heard:
    """A watcher that keeps what it is told of updates."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, ...]] = []

    def step(self, *update: Any) -> None:
        self.steps.append(update)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **more: None


def test_a_watcher_hears_of_updates_in_processes(tmp_path: Path) -> None:
    heard = Heard()
    federation.run(small(clients=2, rounds=1, method="local"), tmp_path / "run", workers=2, watcher=heard)
    assert {step[0] for step in heard.steps} == {"c0", "c1"}
    assert all(1 <= step <= steps == 2 and round == 1 for _, round, _, step, steps, _ in heard.steps)


def test_a_worker_goes_on_when_nobody_listens_any_more() -> None:
    heard, told = multiprocessing.Pipe(duplex=False)
    tell = Teller(told)
    tell("c0", 1, "training", 1, 2, 0.5)
    assert heard.recv() == ("c0", 1, "training", 1, 2, 0.5)
    tell("c0", 1, "training", 2, 2, 0.5)
    assert not heard.poll()  # too soon after the first
    heard.close()
    tell.last = 0.0
    tell("c0", 2, "training", 1, 2, 0.5)
    tell("c0", 2, "training", 2, 2, 0.5)


def test_a_watcher_that_fails_does_not_stop_the_worker() -> None:
    heard, told = multiprocessing.Pipe(duplex=False)
    Teller(told)("c0", 1, "training", 1, 2, 0.5)

    def fail(*update: Any) -> None:
        raise OSError("the terminal is gone")

    listen(heard, fail)
    with pytest.raises(OSError, match="Broken pipe"):
        told.send(None)
