"""Clients in Ray's workers give what clients in one process give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from federations import outcome, small

from h2tune import federation
from h2tune.simulation.ray_workers import Worker, Workers, WorkersError, spread


def test_clients_of_one_base_stay_together() -> None:
    clients = small(clients=6).clients  # llama, gpt2, qwen, llama, gpt2, qwen
    assert spread(clients, 3) == [["c1", "c4"], ["c0", "c3"], ["c2", "c5"]]
    assert sorted(name for names in spread(clients, 4) for name in names) == [c.name for c in clients]
    assert spread(clients, 1) == [["c1", "c4", "c0", "c3", "c2", "c5"]]


class Far:
    """A worker on a machine that sees this one's files, or has none of them."""

    def __init__(self, shared: bool) -> None:
        self.shared, self.sees = shared, self

    def remote(self, path: str) -> bool:
        return self.shared and Worker.sees(None, path)  # type: ignore[arg-type]


def test_workers_that_do_not_see_the_run_directory_are_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workers, "_result", lambda self, promise: promise)
    workers, run = Workers.__new__(Workers), tmp_path / "new" / "run"
    workers.actors = [Far(True), Far(True)]
    workers._check_shared(run)
    assert not list(run.parent.iterdir())
    workers.actors = [Far(True), Far(False)]
    with pytest.raises(WorkersError, match="1 of 2 workers do not see"):
        workers._check_shared(run)


@pytest.mark.slow
def test_in_workers_is_in_process_bit_for_bit(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'h2tune[workers]'")
    experiment = small(clients=3, rounds=2)
    federation.run(experiment, tmp_path / "here")
    federation.run(experiment, tmp_path / "there", workers=2)
    here, there = outcome(tmp_path / "here"), outcome(tmp_path / "there")
    assert here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in here)
