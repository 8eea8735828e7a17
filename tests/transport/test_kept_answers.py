"""An answer that ended a round is kept: whatever makes the server ask again, no client trains the round a second time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_scenario import FaultScenario
from simulated_network import SimulatedClient

from h2tune.client import Client
from h2tune.deployment.join import Participant, attend
from h2tune.deployment.kept_answer import FILE
from h2tune.deployment.status import StatusFile, describe
from h2tune.protocol.codec import Message
from h2tune.store import RunStore


class Killed(BaseException):
    """Nothing may catch it, as nothing catches a kill."""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each client trained each round."""
    counted: Counter[tuple[str, int]] = Counter()
    take_part = Client._take_part

    def counting(client: Client, message: Message) -> Any:
        counted[client.name, message.round] += 1
        return take_part(client, message)

    monkeypatch.setattr(Client, "_take_part", counting)
    return counted


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


# The moments of round 2: nobody has answered, one has, both have and nothing is committed, it is committed.
@pytest.mark.parametrize("answers", [0, 1, 2])
def test_after_a_kill_of_the_server_in_mid_round_no_update_is_computed_again(
    answers: int, undisturbed: dict[str, torch.Tensor], trained: Counter[Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The clients run on; an answer that came while the server was away is no work lost."""
    scenario, seen = FaultScenario(tmp_path), []
    event = RunStore.event

    def dying(store: RunStore, kind: str, text: str, **fields: Any) -> None:
        event(store, kind, text, **fields)
        if fields.get("round") == 2:
            seen.append(kind)
            if seen.count("client_finished") == answers and kind == (
                "client_finished" if answers else "round_started"
            ):
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "event", dying)
        with pytest.raises(Killed):
            scenario.serve()
    metrics = scenario.serve(start=False)
    assert metrics["rounds"] == 3 and same(scenario.outcome(), undisturbed)
    assert set(trained.values()) == {1}


def test_a_cut_of_minutes_loses_no_work(
    undisturbed: dict[str, torch.Tensor], trained: Counter[Any], tmp_path: Path
) -> None:
    scenario = FaultScenario(tmp_path, quorum=2)

    def cut(client: SimulatedClient) -> None:
        scenario.network.cut = True
        scenario.network.after(200, lambda: setattr(scenario.network, "cut", False))

    scenario.clients["c1"].faults = {"train": ("after", cut)}
    scenario.serve()
    assert scenario.events("quorum_missed") and same(scenario.outcome(), undisturbed) and set(trained.values()) == {1}


def test_a_client_that_was_killed_with_its_answer_made_does_not_train_again(
    undisturbed: dict[str, torch.Tensor], trained: Counter[Any], tmp_path: Path
) -> None:
    scenario = FaultScenario(tmp_path)
    scenario.clients["c1"].faults = {"train": ("after", lambda client: client.kill(back_after=2))}
    scenario.serve()
    assert same(scenario.outcome(), undisturbed) and set(trained.values()) == {1}


@pytest.mark.parametrize("change", ["the answer is damaged", "the state is lost", "another learning rate"])
def test_an_answer_that_no_longer_fits_is_made_anew(change: str, trained: Counter[Any], tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path)
    client, state = scenario.clients["c1"], tmp_path / "c1" / "state"

    def spoil(other: SimulatedClient) -> None:
        other.kill(back_after=2)
        if change == "the answer is damaged":
            data = bytearray((state / FILE).read_bytes())
            data[-3] ^= 1
            (state / FILE).write_bytes(bytes(data))
        elif change == "the state is lost":
            (state / "state-000001.safetensors").unlink()
        else:
            own = {"model": "zoo:gpt2", "learning_rate": 0.5} | {
                key: getattr(scenario.experiment.clients[1], key) for key in ("train", "test", "validation")
            }
            client.make = lambda: Participant(scenario.kits["c1"], own).answer

    client.faults = {"train": ("after", spoil)}
    metrics = scenario.serve()
    assert metrics["clients"]["c1"]["final"] and trained["c1", 1] == 2 and trained["c1", 2] == 1


def test_a_finished_client_started_again_says_so(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path)
    kit = scenario.kits["c1"]
    scenario.serve()
    with StatusFile(kit):  # at the end its process writes that it has finished
        pass

    def no_engine(*args: Any) -> Any:
        raise AssertionError("nothing is to be connected")

    words = attend(kit, {}, engine=no_engine)
    assert "the federation has finished; the adapter is in" in words and "move" in words
    assert describe(kit)["state"] == "finished" == json.loads((kit.folder / "status.json").read_text())["over"]


def test_rounds_of_several_exchanges_are_begun_again(
    trained: Counter[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With secure aggregation what was masked once may not be sent again under other masks: the round is trained anew."""
    scenario = FaultScenario(tmp_path, clients=3, secure_aggregation={"threshold": 3})
    event, seen = RunStore.event, []

    def dying(store: RunStore, kind: str, text: str, **fields: Any) -> None:
        event(store, kind, text, **fields)
        if fields.get("round") == 2 and kind == "client_finished":
            seen.append(kind)
            if len(seen) == 1:
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "event", dying)
        with pytest.raises(Killed):
            scenario.serve()
    metrics = scenario.serve(start=False)
    assert metrics["rounds"] == 3 and not any((tmp_path / name / "state" / FILE).exists() for name in scenario.clients)
    assert all(metrics["clients"][name]["final"] for name in scenario.clients)
