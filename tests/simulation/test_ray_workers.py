"""Clients in Ray's workers give what clients in one process give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from federations import outcome, small

from h2tune import federation
from h2tune.simulation.ray_workers import spread


def test_clients_of_one_base_stay_together() -> None:
    clients = small(clients=6).clients  # llama, gpt2, qwen, llama, gpt2, qwen
    assert spread(clients, 3) == [["c1", "c4"], ["c0", "c3"], ["c2", "c5"]]
    assert sorted(name for names in spread(clients, 4) for name in names) == [c.name for c in clients]
    assert spread(clients, 1) == [["c1", "c4", "c0", "c3", "c2", "c5"]]


@pytest.mark.slow
def test_in_workers_is_in_process_bit_for_bit(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'h2tune[workers]'")
    experiment = small(clients=3, rounds=2)
    federation.run(experiment, tmp_path / "here")
    federation.run(experiment, tmp_path / "there", workers=2)
    here, there = outcome(tmp_path / "here"), outcome(tmp_path / "there")
    assert here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in here)
