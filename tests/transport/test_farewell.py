"""A federation that has finished says so to everybody: to who is here, who comes soon, and who comes a day later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fault_scenario import WAITS, FaultScenario

from h2tune.deployment.farewell import FILE, REASON, STAY
from h2tune.store import RunStore
from h2tune.transport.access import PUT_OUT, write_revoked


def without_c1(folder: Path, back_at_the_end: float | None = None) -> FaultScenario:
    """c1 leaves in round 1; it is back so many seconds after the figures were written, or never."""
    scenario = FaultScenario(folder, rounds=1)
    scenario.clients["c1"].faults = {"train": ("before", lambda client: client.kill())}
    if back_at_the_end is not None:
        event = RunStore.event

        def told(store: RunStore, kind: str, text: str, **fields: Any) -> None:
            event(store, kind, text, **fields)
            if kind == "run_finished":
                scenario.network.after(back_at_the_end, scenario.clients["c1"].start)

        RunStore.event, scenario.restore = told, lambda: setattr(RunStore, "event", event)
    return scenario


def aware(scenario: FaultScenario) -> list[str]:
    return json.loads((scenario.folder / "server" / "run" / FILE).read_text())


def test_a_client_that_returns_after_the_end_is_told_so(tmp_path: Path) -> None:
    """First while the server still stays, then with one that is started again to tell it; after that nobody waits."""
    scenario = without_c1(tmp_path, back_at_the_end=20)
    try:
        metrics = scenario.serve()
    finally:
        scenario.restore()
    scenario.network.receive(1.0)  # the last words arrive
    assert metrics["clients"]["c1"]["final"] is None and scenario.clients["c1"].stopped == [REASON]
    assert scenario.clients["c0"].stopped == [REASON] and aware(scenario) == ["c0", "c1"]
    assert "c1 may not know it" in scenario.events("waiting")[-1]["text"]
    begin = scenario.network.now
    assert scenario.serve(start=False) == metrics and scenario.network.now == begin


def test_a_server_started_again_tells_who_was_away_at_the_end(tmp_path: Path) -> None:
    scenario = without_c1(tmp_path)
    metrics = scenario.serve()
    assert aware(scenario) == ["c0"] and scenario.network.now > STAY
    begin = scenario.network.now
    scenario.network.after(WAITS["gather"] - 5, scenario.clients["c1"].start)
    assert scenario.serve(start=False) == metrics
    assert begin + WAITS["gather"] - 5 <= scenario.network.now < begin + WAITS["gather"]
    scenario.network.receive(1.0)
    assert scenario.clients["c1"].stopped == [REASON]
    assert aware(scenario) == ["c0", "c1"] and len(scenario.events("run_finished")) == 1


def test_who_was_put_out_is_not_waited_for_and_a_run_of_an_earlier_version_waits_for_nobody(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, rounds=1)
    scenario.kits["server"].engine.mkdir(parents=True)
    write_revoked(scenario.kits["server"].engine, ["c1"])
    scenario.serve()
    assert aware(scenario) == ["c0"] and not scenario.events("waiting")
    assert scenario.clients["c1"].stopped and all(PUT_OUT in text for text in scenario.clients["c1"].stopped)
    (tmp_path / "server" / "run" / FILE).unlink()
    begin = scenario.network.now
    scenario.serve(start=False)
    assert scenario.network.now == begin
