"""Put out means out, at once: whoever is connected, idle, in mid-round or away; and a renewed certificate replaces the old one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fault_scenario import WAITS, FaultScenario
from loopback import Session, begun, until
from simulated_network import SimulatedClient

from h2tune.deployment.kits import Kit, KitError
from h2tune.deployment.provision import provision, record_certificates, revoke
from h2tune.deployment.status import describe
from h2tune.transport.access import (
    CERTIFICATES,
    PUT_OUT,
    REPLACED,
    AccessError,
    AccessList,
    read_revoked,
    write_certificates,
    write_revoked,
)


def put_out(scenario: FaultScenario, name: str) -> Callable[[], None]:
    return lambda: write_revoked(scenario.kits["server"].engine, [name])


def second_round(scenario: FaultScenario, fault: Callable[[SimulatedClient], None]) -> None:
    """Plant a fault in c1 for when it is asked to train for the second time."""

    def again(client: SimulatedClient) -> None:
        client.faults = {"train": ("before", fault)}

    scenario.clients["c1"].faults = {"train": ("before", again)}


def folder(scenario: FaultScenario) -> FaultScenario:
    scenario.kits["server"].engine.mkdir(parents=True)
    return scenario


def test_an_update_of_the_round_in_which_its_client_is_revoked_does_not_count(tmp_path: Path) -> None:
    """c1's answer is taken, c0 still works; the result is that of a round which c1 never saw."""
    outcomes = []
    for moment in ("after its answer", "before the round"):
        scenario = folder(FaultScenario(tmp_path / moment))
        scenario.clients["c0"].work = 8.0

        def plant(client: SimulatedClient, scenario: FaultScenario = scenario, moment: str = moment) -> None:
            delay = 4.0 if moment == "after its answer" else 0.0
            scenario.network.after(delay, put_out(scenario, "c1"))

        second_round(scenario, plant)
        metrics = scenario.serve()
        assert metrics["rounds"] == 3 and metrics["clients"]["c1"]["status"] == f"stopped: {PUT_OUT}"
        assert [r["round"] for r in metrics["clients"]["c1"]["rounds"]] == [1]
        assert [r["round"] for r in metrics["clients"]["c0"]["rounds"]] == [1, 2, 3]
        assert scenario.clients["c1"].stopped[0] == PUT_OUT and metrics["clients"]["c1"]["final"] is None
        outcomes.append(scenario.outcome_without("c1"))
        begun_again = [e["text"] for e in scenario.events("round_interrupted")]
        assert begun_again == (["round 2 begins again: c1 was revoked"] if moment == "after its answer" else [])
    first, second_outcome = outcomes
    assert first.keys() == second_outcome.keys() and all(torch.equal(first[k], second_outcome[k]) for k in first)


def test_a_revoked_client_is_told_at_once_and_the_server_does_not_wait_for_it(tmp_path: Path) -> None:
    scenario = folder(FaultScenario(tmp_path))
    told: list[float] = []

    def hang_and_put_out(client: SimulatedClient) -> None:
        client.hang(1000)
        scenario.network.after(1.0, put_out(scenario, "c1"))
        scenario.network.after(1.0, lambda: told.append(scenario.network.now))

    scenario.clients["c1"].faults = {"train": ("after", hang_and_put_out)}
    metrics = scenario.serve()
    assert metrics["clients"]["c1"]["status"] == f"stopped: {PUT_OUT}" and metrics["clients"]["c0"]["final"]
    assert scenario.network.now < told[0] + WAITS["silence"] + 20  # not until the deadline
    assert [e["client"] for e in scenario.events("revoked")] == ["c1"]


def test_who_is_revoked_while_the_server_is_away_is_out_when_it_starts(tmp_path: Path) -> None:
    scenario = folder(FaultScenario(tmp_path))
    put_out(scenario, "c1")()
    metrics = scenario.serve()
    assert metrics["clients"]["c1"]["status"] == f"stopped: {PUT_OUT}" and not metrics["clients"]["c1"]["rounds"]
    assert metrics["rounds"] == 3 and all(PUT_OUT in text for text in scenario.clients["c1"].stopped)


def test_who_is_admitted_again_takes_part_again(tmp_path: Path) -> None:
    scenario = folder(FaultScenario(tmp_path, rounds=6))

    def put_out_and_end(client: SimulatedClient) -> None:
        put_out(scenario, "c1")()
        client.kill(back_after=8)

    scenario.clients["c1"].faults = {"train": ("before", put_out_and_end)}
    scenario.network.at(11.0, lambda: write_revoked(scenario.kits["server"].engine, []))
    metrics = scenario.serve()
    rounds = [r["round"] for r in metrics["clients"]["c1"]["rounds"]]
    assert rounds[0] > 1 and rounds[-1] == 6 and metrics["clients"]["c1"]["final"]
    assert [e["client"] for e in scenario.events("client_admitted")] == ["c1"]


def test_the_lists_are_read_again_when_they_change_and_damage_changes_nothing(tmp_path: Path) -> None:
    access = AccessList(tmp_path)
    assert access.objection("c1", 5) == "" and not access.look()
    write_revoked(tmp_path, ["c2"])
    write_certificates(tmp_path, {"c1": (5, 255)})
    assert access.look() and access.objection("c2") == PUT_OUT
    assert (
        access.objection("c1", 255) == "" and access.objection("c1", 6) == REPLACED and not access.objection("c3", 6)
    )
    (tmp_path / "disabled_clients.json").write_text("[")
    assert not access.look() and access.revoked == {"c2"} and "cannot be read" in access.fault
    with pytest.raises(AccessError, match="copy it from the coordinator's folder `authority` again"):
        AccessList(tmp_path)  # a start with a damaged list would let everybody in
    write_revoked(tmp_path, [])
    assert access.look() and access.revoked == set() and not access.fault


def test_an_unknown_name_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    for name in ("server", "hospital-a", "hospital-b"):
        (tmp_path / name / "engine").mkdir(parents=True)
        (tmp_path / name / "kit.json").write_text("{}")
    with pytest.raises(KitError, match="holds no kits of a federation: is --out the folder"):
        revoke(tmp_path, ["hospital-a"])
    (tmp_path / "authority").mkdir()
    (tmp_path / "authority" / "federation.json").write_text("{}")
    with pytest.raises(KitError, match=r"There is no participant 'hospital-c'; did you mean hospital-[ab]"):
        revoke(tmp_path, ["hospital-c"])
    with pytest.raises(KitError, match=r"There is no participant 'x'; there are hospital-a, hospital-b"):
        revoke(tmp_path, ["hospital-a", "x"])
    assert read_revoked(tmp_path / "server" / "engine") == []  # nobody, if one name is wrong


def ended(session: Session, name: str, says: str) -> float:
    """Seconds until a client says why it ends; and it does."""
    begin, log = time.monotonic(), session.folder / f"{name}.log"
    until(lambda: says in log.read_text(), f"{name} says so")
    seconds = time.monotonic() - begin
    assert session.processes[name].wait(60) == 1
    return seconds


@pytest.mark.slow
def test_a_connected_client_that_is_revoked_is_out_within_ten_seconds_and_stays_out(tmp_path: Path) -> None:
    with begun(tmp_path, rounds=60) as session:
        revoke(session.folder, ["c1"])
        assert ended(session, "c1", PUT_OUT) < 10
        assert until(lambda: [e["client"] for e in session.events("revoked")] == ["c1"], "the server says so")
        last = max(e["round"] for e in session.events("round_committed"))
        assert f"stopped: {PUT_OUT}" == describe(Kit(session.folder / "server"))["clients"]["c1"]["status"]
        session.start("c1")  # again: it is told again
        assert ended(session, "c1", "revoked") < 45
        until(lambda: session.committed(last + 2), "the others go on")
        assert all(e["round"] <= last + 1 for e in session.events("client_finished") if e["client"] == "c1")
        assert session.processes["c0"].poll() is None


@pytest.mark.slow
def test_a_client_that_is_revoked_while_it_reconnects_is_told_when_it_is_back(tmp_path: Path) -> None:
    with begun(tmp_path, silence=5, tap=True, rounds=1000) as session:
        session.tap.shut(True)
        until(lambda: [e for e in session.events("client_away") if e["client"] == "c1"], "c1 is away")
        revoke(session.folder, ["c1"])
        until(lambda: [e["client"] for e in session.events("revoked")] == ["c1"], "the server says so")
        last = max(e["round"] for e in session.events("round_committed"))
        session.tap.shut(False)
        assert ended(session, "c1", PUT_OUT) < 60
        until(lambda: session.committed(last + 2), "the others go on")
        assert not [e for e in session.events("client_finished") if e["client"] == "c1" and e["round"] > last]
        assert session.processes["c0"].poll() is None


@pytest.mark.slow
def test_a_renewed_certificate_cuts_off_the_old_one_and_the_new_kit_takes_part(tmp_path: Path) -> None:
    with begun(tmp_path, rounds=1000) as session:
        made = tmp_path / "made"  # where the coordinator makes kits, on another machine than the server
        shutil.copytree(session.folder, made)
        provision(session.experiment, made, renew=["c1"])
        shutil.copy(made / "server" / "engine" / CERTIFICATES, session.folder / "server" / "engine")
        assert ended(session, "c1", REPLACED) < 10
        session.start("c1")  # the old kit again: it is not let in
        until(lambda: any(f"c1 at 127.0.0.1 was refused: {REPLACED}" in e["text"] for e in session.events("engine")),
              "the server says so")  # fmt: skip
        ended(session, "c1", "it may have been renewed or revoked; ask the coordinator for the newest kit")
        for name in ("own.yaml", "state"):
            shutil.rmtree(made / "c1" / name, ignore_errors=True)
            (session.folder / "c1" / name).replace(made / "c1" / name)
        (session.folder / "c1").rename(tmp_path / "old")
        (made / "c1").rename(session.folder / "c1")
        session.start("c1")
        until(lambda: [e for e in session.events("client_rejoined") if e["client"] == "c1"], "the new kit takes part")


def test_a_kit_made_again_because_it_was_missing_leaves_the_old_one_in_force(tmp_path: Path) -> None:
    pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")
    from federations import small

    provision(small(), tmp_path)
    serial = AccessList(tmp_path / "server" / "engine").certificates["c1"]
    (tmp_path / "c1").rename(tmp_path / "handed-out")
    (tmp_path / "handed-out" / "kit.json").unlink()
    provision(small(), tmp_path)
    two = AccessList(tmp_path / "server" / "engine").certificates["c1"]
    assert len(two) == 2 and two[0] == serial[0]
    revoke(tmp_path, ["c1"])
    provision(small(), tmp_path, renew=["c1"])
    access = AccessList(tmp_path / "server" / "engine")
    assert len(access.certificates["c1"]) == 1 and access.certificates["c1"][0] not in two and not access.revoked
    provision(small(), tmp_path, renew=["server"])  # its engine is made again, and knows what the old one knew
    assert AccessList(tmp_path / "server" / "engine").certificates == access.certificates
    record_certificates(tmp_path, [], [])
