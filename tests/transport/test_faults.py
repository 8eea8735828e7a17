"""A bad scenario, case by case: who dies, hangs, restarts, comes late or is cut off; every federation ends as it should."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fault_scenario import WAITS, FaultScenario, quick
from federations import core
from safetensors.torch import load_file
from simulated_network import FEDERATION, SimulatedClient
from typer.testing import CliRunner

from h2tune import federation
from h2tune.cli.app import app
from h2tune.deployment.farewell import CANNOT, MISFIT, OTHER, SOON, errors_told
from h2tune.errors import MethodError, QuorumError
from h2tune.store import ClientStore, RunStore, StoreError
from h2tune.tasks.sources import read_rows
from h2tune.transport.client_loop import Conversation
from h2tune.transport.envelope import Envelope
from h2tune.transport.network import Network
from h2tune.version import __version__
from h2tune.vertical.exchange import NoLog


def same(scenario: FaultScenario, wanted: dict[str, torch.Tensor]) -> bool:
    found = scenario.outcome()
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_over_the_network_is_in_process_bit_for_bit(undisturbed: dict[str, torch.Tensor], tmp_path: Path) -> None:
    federation.run(quick(), tmp_path / "run")
    shared = core(tmp_path / "run")
    assert shared and all(torch.equal(shared[k], undisturbed[k]) for k in shared)
    for name in ("c0", "c1"):
        adapter = load_file(tmp_path / "run" / "clients" / name / "adapter" / "adapter_model.safetensors")
        assert all(torch.equal(tensor, undisturbed[f"{name}.{k}"]) for k, tensor in adapter.items())


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["train", "finish"])
def test_a_client_killed_in_a_round_and_restarted_changes_nothing(
    kind: str, moment: str, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    scenario = FaultScenario(tmp_path)
    scenario.clients["c1"].faults = {kind: (moment, lambda client: client.kill(back_after=2))}
    metrics = scenario.serve()
    assert scenario.clients["c1"].lives == 2 and metrics["clients"]["c1"]["status"] == "ok"
    assert same(scenario, undisturbed)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["join", "welcome"])
def test_a_client_killed_at_the_start_joins_when_it_is_back(kind: str, moment: str, tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path)
    scenario.clients["c1"].faults = {kind: (moment, lambda client: client.kill(back_after=2))}
    metrics = scenario.serve()
    assert metrics["rounds"] == 3 and metrics["clients"]["c1"]["final"] and metrics["clients"]["c1"]["status"] == "ok"
    assert len(metrics["clients"]["c1"]["rounds"]) >= 2


def test_a_client_that_stays_away_does_not_stop_the_others(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path)
    scenario.clients["c1"].faults = {"train": ("before", lambda client: client.kill())}
    metrics = scenario.serve()
    assert metrics["rounds"] == 3 and metrics["clients"]["c0"]["final"]
    assert metrics["clients"]["c1"]["final"] is None and metrics["clients"]["c1"]["status"] == "away: silent for 5 s"
    assert len(scenario.events("client_away")) == 1


def test_a_client_away_for_a_round_is_taken_back(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, rounds=5)
    scenario.clients["c1"].faults = {"train": ("before", lambda client: client.kill(back_after=9))}
    metrics = scenario.serve()
    rounds = [record["round"] for record in metrics["clients"]["c1"]["rounds"]]
    assert 1 not in rounds and rounds[-1] == 5 and metrics["clients"]["c1"]["final"]
    assert [e["client"] for e in scenario.events("client_rejoined")] == ["c1"]


def test_a_client_that_hangs_misses_rounds_and_its_late_answer_is_dropped(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, rounds=4)
    scenario.clients["c1"].faults = {"train": ("after", lambda client: client.hang(62.5))}
    metrics = scenario.serve()
    assert metrics["rounds"] == 4 and len(scenario.events("late")) == 1
    rounds = [record["round"] for record in metrics["clients"]["c1"]["rounds"]]
    assert 1 not in rounds and rounds[-1] == 4 and metrics["clients"]["c1"]["status"] == "ok"
    assert scenario.events("client_away")[0]["text"] == "c1: no answer within 60 s"


def test_a_late_client_joins_a_running_federation(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, rounds=4)
    scenario.clients["c0"].start()
    scenario.network.at(37.0, scenario.clients["c1"].start)
    metrics = scenario.serve(start=False)
    assert metrics["clients"]["c1"]["final"] and metrics["clients"]["c1"]["rounds"][-1]["round"] == 4
    assert metrics["clients"]["c1"]["rounds"][0]["round"] > 1


def test_a_short_cut_of_the_connection_changes_nothing(undisturbed: dict[str, torch.Tensor], tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path)

    def cut(client: SimulatedClient) -> None:
        scenario.network.cut = True
        scenario.network.after(4, lambda: setattr(scenario.network, "cut", False))

    scenario.clients["c1"].faults = {"train": ("after", cut)}
    scenario.serve()
    assert same(scenario, undisturbed) and not scenario.events("client_away")


def test_a_long_cut_is_outlived(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, quorum=2)

    def cut(client: SimulatedClient) -> None:
        scenario.network.cut = True
        scenario.network.after(40, lambda: setattr(scenario.network, "cut", False))

    scenario.clients["c1"].faults = {"train": ("after", cut)}
    metrics = scenario.serve()
    assert metrics["rounds"] == 3 and all(c["final"] for c in metrics["clients"].values())
    assert scenario.events("quorum_missed") and len(scenario.events("client_away")) == 2


def test_a_round_without_a_quorum_is_held_again_from_where_everybody_stood(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    scenario = FaultScenario(tmp_path, quorum=2)
    scenario.clients["c1"].faults = {"train": ("before", lambda client: client.kill(back_after=20))}
    scenario.serve()
    assert scenario.events("quorum_missed") and same(scenario, undisturbed)


def test_a_quorum_that_never_comes_ends_with_the_reason(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, quorum=2)
    scenario.clients["c1"].faults = {"train": ("before", lambda client: client.kill())}
    with pytest.raises(QuorumError, match="Only 1 of 2 clients answered; quorum is 2"):
        scenario.serve()
    assert scenario.network.now > WAITS["patience"]
    scenario.network.receive(1.0)  # the last words arrive
    assert set(scenario.clients["c0"].paused) == {"too few clients take part"} and not scenario.clients["c0"].stopped
    assert "Only 1 of 2 clients answered" in scenario.events("run_stopped")[-1]["text"]
    scenario.clients["c1"].start()  # who has waited goes on with a server that is started again
    assert scenario.serve(start=False)["rounds"] == 3


def test_clients_that_do_not_fit_together_are_told_so_and_end(tmp_path: Path) -> None:
    """The server would end with the same error every time: nobody waits for it."""
    scenario = FaultScenario(tmp_path, method="fedit")  # two families, which cannot average factors
    with pytest.raises(MethodError, match="averages LoRA factors"):
        scenario.serve()
    scenario.network.receive(1.0)
    for client in scenario.clients.values():
        assert client.stopped == [CANNOT.format(MISFIT)]  # nothing of the other clients
        assert not client.alive and not client.paused
    assert "averages LoRA factors" in scenario.events("run_stopped")[-1]["text"]


def test_clients_that_do_not_fit_without_one_that_is_away_wait_for_it(tmp_path: Path) -> None:
    experiment = quick(method="fedit")
    third = experiment.clients[0].model_copy(update={"name": "c2"})
    scenario = FaultScenario(tmp_path, experiment.model_copy(update={"clients": [*experiment.clients, third]}))
    for name in ("c0", "c1"):
        scenario.clients[name].start()
    with pytest.raises(MethodError, match="averages LoRA factors"):
        scenario.serve(start=False)
    scenario.network.receive(1.0)
    for name in ("c0", "c1"):
        assert scenario.clients[name].alive and set(scenario.clients[name].paused) == {MISFIT}
    scenario.clients["c2"].start()
    assert scenario.serve(start=False)["rounds"] == 3


def test_settings_that_cannot_be_are_an_event_and_told_to_clients_that_are_about_to_connect(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path)
    path = tmp_path / "server" / "federation.yaml"
    kit = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(kit | {"method": {"name": "h2tune", "pace": 1}}))
    with pytest.raises(MethodError, match="no such setting"):
        scenario.serve()
    scenario.network.receive(1.0)
    assert all(client.stopped == [CANNOT.format(MISFIT)] for client in scenario.clients.values())
    assert "no such setting" in scenario.events("run_stopped")[-1]["text"]
    with pytest.raises(MethodError):
        scenario.serve(start=False)  # nobody comes: it does not stay for long
    assert scenario.network.now < 2 * SOON


def test_who_is_excluded_hears_why_when_the_server_ends_with_an_error(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path)
    network = Network(scenario.network, ["c0", "c1"], FEDERATION, scenario.experiment.network, lambda *_, **__: None,
                      scenario.network.clock)  # fmt: skip
    for client in scenario.clients.values():
        client.start()
    assert network.wait(["c0", "c1"], 2)
    with pytest.raises(StoreError), errors_told(network, NoLog()) as ending:
        ending.out = lambda: {"c1": "stopped: its update holds no numbers"}
        raise StoreError("/srv/secret could not be written")
    scenario.network.receive(1.0)
    assert scenario.clients["c1"].stopped == ["stopped: its update holds no numbers"]
    assert scenario.clients["c0"].paused == [OTHER] and not scenario.clients["c0"].stopped


@pytest.mark.parametrize(("kind", "event"), [(StoreError, "/srv/secret could not be written"), (KeyError, "KeyError")])
def test_an_error_of_the_servers_own_is_told_without_its_text(
    kind: type[Exception], event: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise kind("/srv/secret could not be written")

    scenario = FaultScenario(tmp_path)
    monkeypatch.setattr(RunStore, "commit", full)
    with pytest.raises(kind, match="/srv/secret"):
        scenario.serve()
    scenario.network.receive(1.0)
    assert scenario.events("run_stopped")[-1]["text"] == f"the server has ended: {event}"
    assert all(c.alive and c.paused and "/srv" not in c.paused[-1] for c in scenario.clients.values())


def test_nobody_comes(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path)
    with pytest.raises(QuorumError, match="Only 0 of 2 clients joined"):
        scenario.serve(start=False)


class Killed(BaseException):
    """Nothing may catch it, as nothing catches a kill."""


@pytest.mark.parametrize(("count", "when"), [(1, "before"), (1, "after"), (2, "before"), (2, "after"), (4, "after")])
def test_the_server_killed_and_started_again_changes_nothing(
    count: int, when: str, undisturbed: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, commit, calls = FaultScenario(tmp_path), RunStore.commit, []

    def dying(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == count and when == "before":
            raise Killed
        commit(*args, **kwargs)
        if len(calls) == count:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "commit", dying)
        with pytest.raises(Killed):
            scenario.serve()
    metrics = scenario.serve(start=False)
    assert metrics["rounds"] == 3 and same(scenario, undisturbed)


def test_a_full_disk_ends_the_client_and_nothing_else(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, client, save = FaultScenario(tmp_path), None, ClientStore.save_state
    client = scenario.clients["c1"]

    def full(store: ClientStore, round: int, state: Any) -> None:
        if round == 2 and client.lives == 1 and store.folder.parent.name == "c1":
            raise StoreError("No space left on device")
        save(store, round, state)

    def start() -> None:
        inner = client.make

        def guarded() -> Callable[[bytes], bytes]:
            answer = inner()

            def or_die(data: bytes) -> bytes:
                try:
                    return answer(data)
                except StoreError:
                    client.kill(back_after=2)
                    return b""

            return or_die

        client.make = guarded

    start()
    monkeypatch.setattr(ClientStore, "save_state", full)
    scenario.serve()
    assert client.lives == 2 and same(scenario, undisturbed)


def test_a_client_that_lost_its_state_joins_anew(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, rounds=5)

    def burn(client: SimulatedClient) -> None:
        client.kill(back_after=9)
        shutil.rmtree(tmp_path / "c1" / "state")

    scenario.clients["c1"].faults = {"train": ("before", burn)}
    metrics = scenario.serve()
    assert metrics["clients"]["c1"]["final"] and metrics["clients"]["c1"]["rounds"][-1]["round"] == 5
    assert "no saved state" in scenario.events("client_away")[-1]["text"]


def test_a_client_of_another_run_is_refused_on_both_sides(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path)
    ClientStore(tmp_path / "c1" / "state").write_json("run.json", {"run": "0123456789abcdef"})
    metrics = scenario.serve()
    assert "belongs to run 01234567" in metrics["clients"]["c1"]["status"] and metrics["clients"]["c0"]["final"]
    assert "belongs to run 01234567" in scenario.clients["c1"].stopped[0]


def test_a_kit_of_another_federation_is_refused_on_both_sides(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path)
    scenario.clients["c1"].federation = "0" * 32
    metrics = scenario.serve()
    assert metrics["clients"]["c1"]["final"] is None and metrics["clients"]["c0"]["final"]
    texts = [e["text"] for e in scenario.events("refused")]
    assert texts == ["c1 at 10.0.0.7: its kit belongs to another federation"]
    assert scenario.clients["c1"].stopped[0] == "its kit belongs to another federation"


def test_a_client_of_another_version_is_refused_on_both_sides(tmp_path: Path) -> None:
    scenario, older = FaultScenario(tmp_path), {"federation": FEDERATION, "process": "p", "version": "0.1.0"}
    scenario.clients["c1"].hello = lambda: scenario.clients["c1"]._post(Envelope("hello", older | {"busy": False}))
    scenario.clients["c1"].talk = Conversation(FEDERATION, "p")
    beat = SimulatedClient._beat

    def as_that_process(client: SimulatedClient, life: int) -> None:
        client.talk.process = "p"
        beat(client, life)

    scenario.clients["c1"]._beat = as_that_process.__get__(scenario.clients["c1"])
    metrics = scenario.serve()
    assert metrics["clients"]["c1"]["final"] is None and metrics["clients"]["c0"]["final"]
    says = f"it runs h2tune 0.1.0, the server {__version__}: install the same version on both sides"
    assert [e["text"] for e in scenario.events("refused")] == [f"c1 at 10.0.0.7: {says}"]
    assert scenario.clients["c1"].stopped == [says]


def test_strangers_and_garbage_are_refused_and_disturb_nobody(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    scenario = FaultScenario(tmp_path)
    scenario.network.at(1.0, lambda: scenario.network.envelopes.append(("mallory", b"\0\0\0\2{}")))
    scenario.network.at(3.0, lambda: scenario.network.envelopes.append(("c0", b"\xff" * 40)))
    scenario.serve()
    assert same(scenario, undisturbed)
    texts = [e["text"] for e in scenario.events("refused")]
    assert texts[0].startswith("mallory: it is not a participant") and texts[1].startswith(
        "c0 at 10.0.0.7: This is no envelope"
    )


def test_who_writes_without_end_fills_neither_the_time_nor_the_disk(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    scenario = FaultScenario(tmp_path)
    hello = {"federation": "f", "version": "1", "protocol": 2, "busy": False, "doing": {}}
    envelopes = [("c0", b"rubbish"), ("c0", Envelope("hello", hello | {"process": "x" * 500}).pack())]
    scenario.network.at(1.0, lambda: scenario.network.envelopes.extend(envelopes * 2500))
    scenario.serve()
    assert same(scenario, undisturbed)
    assert len(scenario.events("refused")) == 1  # in a minute


def test_answers_that_come_twice_or_again_rounds_later_count_once(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    scenario = FaultScenario(tmp_path)
    deliver = SimulatedClient._post

    def twice(client: SimulatedClient, envelope: Any) -> bool:
        if envelope.kind == "answer":
            for delay in (0.0, 5.0, 17.0):
                scenario.network.after(
                    delay, lambda: scenario.network.envelopes.append((client.name, envelope.pack()))
                )
        return deliver(client, envelope)

    for client in scenario.clients.values():
        client._post = twice.__get__(client)
    scenario.serve()
    assert same(scenario, undisturbed) and scenario.events("late")


def test_a_clients_kit_exports_and_predicts_without_its_run(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path)
    scenario.serve()
    for name, kit in scenario.kits.items():
        if name != "server":
            client = next(c for c in scenario.experiment.clients if c.name == name)
            kit.keep_own({"model": client.model, "train": client.train, "test": client.test})
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(next(iter(read_rows("demo:choice?split=test&n=2")))) + "\n")
    exported = CliRunner().invoke(app, ["export", str(tmp_path / "c1"), "--out", str(tmp_path / "lora")])
    assert exported.exit_code == 0 and (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    answered = CliRunner().invoke(app, ["predict", str(tmp_path / "c1"), "--file", str(rows)])
    assert answered.exit_code == 0 and "prediction" in json.loads(answered.output)
