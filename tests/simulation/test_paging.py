"""Clients that leave memory between their rounds learn what they would have learnt staying there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from federations import equal, outcome, small

from h2tune.federation import run
from h2tune.participant.base_models import ModelPool
from h2tune.simulation import clients
from h2tune.simulation.paging import PagedClient


def sampled(**changes: Any) -> Any:
    return small(4, rounds=3, scored=2, participation=0.5, evaluation={"every": 9}, baseline="none", **changes)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clients were in memory after each message."""
    found: list[int] = []
    real = PagedClient.handle

    def handle(self: PagedClient, data: bytes) -> bytes:
        answer = real(self, data)
        found.append(len(self._memory._held))
        return answer

    monkeypatch.setattr(PagedClient, "handle", handle)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"name": "h2tune", "frames": "anchor"}},
        {"method": "fedit", "same_model": True, "parallel": 2},
    ],
    ids=["three families", "side by side"],
)
def test_same_figures(
    changes: dict[str, Any], held: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = sampled(**changes)
    pool = ModelPool("cpu")
    whole = run(experiment, tmp_path / "whole", models=pool)
    assert not held
    pool.release()
    monkeypatch.setattr(clients, "FEW", 1)
    paged = run(experiment, tmp_path / "paged", models=pool)
    assert max(held) == 2 == experiment.clients_per_round
    assert equal(outcome(tmp_path / "whole"), outcome(tmp_path / "paged"))
    assert whole["mean"] == paged["mean"]
