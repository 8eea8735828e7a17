"""Clients that leave memory between their rounds learn what they would have learnt staying there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from federations import ANCHORS, equal, outcome, small
from model_folders import ROWS, TASKS, model_folder, write_rows

from h2tune.config import parse_config
from h2tune.federation import run
from h2tune.participant.base_models import ModelPool
from h2tune.participant.row_privacy import FILE
from h2tune.simulation import clients
from h2tune.simulation.paging import PagedClient
from h2tune.store import ClientStore, RunStore


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


@pytest.mark.parametrize("method", ["fedit", "h2tune"])
def test_what_joining_spends_of_row_privacy_is_spent_once(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fedit trains a new head when it joins; h2tune when it is set up, and so its clients may leave before."""
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    client = {"model": str(model_folder(tmp_path / "model", "llama-cls")), "task": TASKS["classify"]}
    client |= dict.fromkeys(("train", "validation", "test"), str(rows))
    client["row_privacy"] = {"clip": 1.0, "noise": 1.0}
    data = {"rounds": 1, "rank": 2, "anchors": ANCHORS, "device": "cpu", "baseline": "none", "participation": 0.3}
    data["method"] = {"name": method, "frames": "anchor"} if method == "h2tune" else method
    data["training"] = {"steps": 2, "batch_size": 4, "head_steps": 6}
    experiment = parse_config(data | {"clients": [client | {"name": f"c{i}"} for i in range(3)]})
    accounts = []
    for few in (64, 1):
        monkeypatch.setattr(clients, "FEW", few)
        run(experiment, tmp_path / f"few-{few}")
        accounts.append([store_of(tmp_path / f"few-{few}", i).read_json(FILE) for i in range(3)])
    assert accounts[0] == accounts[1] and max(accounts[0][0]["updates"]) >= 3


def store_of(folder: Path, client: int) -> ClientStore:
    return RunStore(folder).client(f"c{client}")
