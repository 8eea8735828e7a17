"""What docs/upgrade.md tells people to do, step by step: back up, restore, renew the authority, upgrade, leave."""

from __future__ import annotations

import json
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_scenario import FaultScenario
from loopback import begun, until
from simulated_network import SimulatedClient, SimulatedNetwork

from h2tune.deployment.process import connection
from h2tune.deployment.status import StatusFile, describe
from h2tune.store import RunStore
from h2tune.transport import client_loop
from h2tune.transport.access import PUT_OUT
from h2tune.transport.client_loop import DismissedError


class Stopped(BaseException):
    """As if a person had stopped the server."""


def same(scenario: FaultScenario, wanted: dict[str, torch.Tensor]) -> bool:
    found = scenario.outcome()
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


def stopped_after(round: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> FaultScenario:
    """A federation of which all processes were stopped after a committed round."""
    scenario, commit = FaultScenario(folder), RunStore.commit

    def stopping(store: RunStore, number: int, *rest: Any) -> None:
        commit(store, number, *rest)
        if number == round:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "commit", stopping)
        with pytest.raises(Stopped):
            scenario.serve()
    return scenario


def go_on(folder: Path, **changes: Any) -> FaultScenario:
    """The same commands again, on what lies in this folder."""
    scenario = FaultScenario(folder, **changes)
    scenario.serve()
    return scenario


def test_a_backup_that_is_restored_goes_on_from_where_it_was_made(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(1, tmp_path / "kits", monkeypatch)
    shutil.copytree(tmp_path / "kits", tmp_path / "backup")
    assert same(go_on(tmp_path / "kits"), undisturbed)
    shutil.rmtree(tmp_path / "kits")
    (tmp_path / "backup").rename(tmp_path / "kits")
    assert same(go_on(tmp_path / "kits"), undisturbed)


def test_the_servers_backup_alone_is_enough_when_clients_have_gone_on(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients keep the states of two rounds: they go back with the server by one round."""
    stopped_after(1, tmp_path / "kits", monkeypatch)
    shutil.copytree(tmp_path / "kits" / "server", tmp_path / "backup")
    stopped = FaultScenario(tmp_path / "kits")
    commit = RunStore.commit

    def stopping(store: RunStore, number: int, *rest: Any) -> None:
        commit(store, number, *rest)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "commit", stopping)
        with pytest.raises(Stopped):
            stopped.serve()
    shutil.rmtree(tmp_path / "kits" / "server")
    (tmp_path / "backup").rename(tmp_path / "kits" / "server")
    assert same(go_on(tmp_path / "kits"), undisturbed)


def test_a_new_authority_goes_on_with_the_old_run(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New kits for all, `run` and `state` moved over."""
    stopped_after(1, tmp_path / "old", monkeypatch)
    new = FaultScenario(tmp_path / "new", federation="e" * 32)
    for name, part in (("server", "run"), ("c0", "state"), ("c1", "state")):
        shutil.rmtree(tmp_path / "new" / name / part, ignore_errors=True)
        (tmp_path / "old" / name / part).rename(tmp_path / "new" / name / part)
    assert new.kits["server"].about.federation == "e" * 32
    assert same(go_on(tmp_path / "new", federation="e" * 32), undisturbed)


def test_server_and_clients_are_upgraded_one_after_the_other(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose version differs takes part, and the events say so, as long as both read the same envelopes."""
    stopped_after(1, tmp_path, monkeypatch)
    scenario = FaultScenario(tmp_path)
    hello = client_loop.Conversation.hello

    def newer(talk: client_loop.Conversation, doing: dict[str, Any]) -> Any:
        envelope = hello(talk, doing)
        if talk.process.startswith("c1"):
            envelope.fields["version"] = "9.9.9"
        return envelope

    monkeypatch.setattr(client_loop.Conversation, "hello", newer)
    scenario.serve()
    assert same(scenario, undisturbed)
    assert "c1 runs h2tune 9.9.9" in scenario.events("other_version")[-1]["text"]


def test_an_end_that_is_near_is_said_at_every_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit, said = FaultScenario(tmp_path).kits["c1"], []
    for days, warned in ((20, 1), (40, 0)):
        said.clear()
        end = datetime.now(UTC) + timedelta(days=days)
        monkeypatch.setattr(type(kit), "check_certificate", lambda self, now=None, end=end: end)
        with StatusFile(kit) as status, connection(kit, status, SimulatedNetwork().engine, said.append):
            pass
        assert len(said) == warned and all("--renew c1" in text for text in said)


def test_status_says_why_a_client_stopped(tmp_path: Path) -> None:
    kit = FaultScenario(tmp_path).kits["c1"]
    engine = SimulatedNetwork().engine
    with pytest.raises(DismissedError), StatusFile(kit) as status, connection(kit, status, engine, print):
        raise DismissedError(PUT_OUT)
    assert describe(kit)["state"] == f"stopped: {PUT_OUT}"


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_that_jumps_an_hour_changes_nothing(
    jump: float, undisturbed: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlines and signs of life are counted by a clock that nobody sets."""
    scenario, now = FaultScenario(tmp_path), time.time

    def set_the_clock(client: SimulatedClient) -> None:
        monkeypatch.setattr(time, "time", lambda: now() + jump)

    scenario.clients["c1"].faults = {"train": ("before", set_the_clock)}
    scenario.serve()
    assert same(scenario, undisturbed) and not scenario.events("client_away")


CLOCK = """
import os, time
real, place = time.time, os.path.join(os.environ["H2TUNE_TEST_CLOCKS"], os.environ["H2TUNE_TEST_NAME"])
def jumped():
    try:
        with open(place) as file:
            return real() + float(file.read())
    except (OSError, ValueError):
        return real()
time.time = jumped
"""


@pytest.mark.slow
def test_clocks_of_the_engine_that_jump_an_hour_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVFlare counts its own signs of life by the machine's clock: at the server forward, at a client back."""
    pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")
    clocks = tmp_path / "clocks"
    clocks.mkdir()
    (clocks / "sitecustomize.py").write_text(CLOCK)
    monkeypatch.syspath_prepend(str(clocks))
    with begun(tmp_path, environment={"H2TUNE_TEST_CLOCKS": str(clocks)}, rounds=5000) as session:
        for name, seconds in (("server", 3600), ("c1", -3600)):
            (clocks / name).write_text(str(seconds))
            begin = time.monotonic()
            last = max(e["round"] for e in session.events("round_committed"))
            # Longer than NVFlare's own patience with a site, which is a minute.
            until(lambda b=begin: time.monotonic() - b > 75, "a while")
            finished = [e["client"] for e in session.events("client_finished") if e["round"] > last]
            assert finished.count("c1") > 5 and finished.count("c0") > 5
            said = json.loads((tmp_path / "kits" / name / "status.json").read_text())["time"]
            assert abs(said - time.time() - seconds) < 60  # its clock has jumped
        for kind in ("client_away", "client_rejoined", "refused", "round_interrupted"):
            assert not session.events(kind), session.events(kind)
