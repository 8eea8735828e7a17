"""A bad night, case by case: who dies, hangs, restarts, comes late or is cut off; every federation ends as it should."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import small
from office import Office, SimulatedClient, kits, participant
from safetensors.torch import load_file
from typer.testing import CliRunner

from h2tune import federation
from h2tune.cli import app
from h2tune.network.serve import serve
from h2tune.server import QuorumError
from h2tune.store import ClientStore, RunStore, StoreError
from h2tune.tasks.sources import read_rows
from h2tune.transport.letters import Letter

WAITS = {"deadline": 60, "silence": 5, "gather": 30, "patience": 300}


class Night:
    """Two clients and a server over the office's post."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.experiment = small(network=WAITS, **changes)
        self.folder, self.office = folder, Office()
        self.kits = kits(self.experiment, folder)
        self.clients: dict[str, SimulatedClient] = {}
        for client in self.experiment.clients:
            own = {"model": client.model, "train": client.train, "test": client.test, "validation": client.validation}
            make = participant(self.kits[client.name], own)
            self.clients[client.name] = SimulatedClient(self.office, client.name, make)

    def serve(self, start: bool = True) -> dict[str, Any]:
        if start:
            for client in self.clients.values():
                client.start()
        return serve(self.kits["server"], engine=self.office.engine, clock=self.office.clock)

    def outcome(self) -> dict[str, torch.Tensor]:
        found = load_file(self.folder / "server" / "run" / "server" / "core.safetensors")
        for name in self.clients:
            tensors = load_file(self.folder / name / "state" / "adapter" / "adapter_model.safetensors")
            found |= {f"{name}.{k}": v for k, v in tensors.items()}
        return found

    def outcome_of_core(self) -> torch.Tensor:
        return load_file(self.folder / "server" / "run" / "server" / "core.safetensors")["S"]

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.folder / "server" / "run" / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    night = Night(tmp_path_factory.mktemp("quiet"))
    metrics = night.serve()
    assert metrics["finished"] and metrics["rounds"] == 3
    return night.outcome()


def same(night: Night, wanted: dict[str, torch.Tensor]) -> bool:
    found = night.outcome()
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_over_the_network_is_in_process_bit_for_bit(undisturbed: dict[str, torch.Tensor], tmp_path: Path) -> None:
    federation.run(small(network=WAITS), tmp_path / "run")
    core = load_file(tmp_path / "run" / "server" / "core.safetensors")
    assert core and all(torch.equal(core[k], undisturbed[k]) for k in core)
    for name in ("c0", "c1"):
        adapter = load_file(tmp_path / "run" / "clients" / name / "adapter" / "adapter_model.safetensors")
        assert all(torch.equal(tensor, undisturbed[f"{name}.{k}"]) for k, tensor in adapter.items())


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["round", "finish"])
def test_a_client_killed_in_a_round_and_restarted_changes_nothing(
    kind: str, moment: str, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    night = Night(tmp_path)
    night.clients["c1"].faults = {kind: (moment, lambda client: client.kill(back_after=2))}
    metrics = night.serve()
    assert night.clients["c1"].lives == 2 and metrics["clients"]["c1"]["status"] == "ok"
    assert same(night, undisturbed)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["join", "welcome"])
def test_a_client_killed_at_the_start_joins_when_it_is_back(kind: str, moment: str, tmp_path: Path) -> None:
    night = Night(tmp_path)
    night.clients["c1"].faults = {kind: (moment, lambda client: client.kill(back_after=2))}
    metrics = night.serve()
    assert metrics["rounds"] == 3 and metrics["clients"]["c1"]["final"] and metrics["clients"]["c1"]["status"] == "ok"
    assert len(metrics["clients"]["c1"]["rounds"]) >= 2


def test_a_client_that_stays_away_does_not_stop_the_others(tmp_path: Path) -> None:
    night = Night(tmp_path)
    night.clients["c1"].faults = {"round": ("before", lambda client: client.kill())}
    metrics = night.serve()
    assert metrics["rounds"] == 3 and metrics["clients"]["c0"]["final"]
    assert metrics["clients"]["c1"]["final"] is None and metrics["clients"]["c1"]["status"] == "away: silent for 5 s"
    assert len(night.events("client_away")) == 1


def test_a_client_away_for_a_round_is_taken_back(tmp_path: Path) -> None:
    night = Night(tmp_path, rounds=5)
    night.clients["c1"].faults = {"round": ("before", lambda client: client.kill(back_after=9))}
    metrics = night.serve()
    rounds = [record["round"] for record in metrics["clients"]["c1"]["rounds"]]
    assert 1 not in rounds and rounds[-1] == 5 and metrics["clients"]["c1"]["final"]
    assert [e["client"] for e in night.events("client_back")] == ["c1"]


def test_a_client_that_hangs_misses_rounds_and_its_late_answer_is_dropped(tmp_path: Path) -> None:
    night = Night(tmp_path, rounds=4)
    night.clients["c1"].faults = {"round": ("after", lambda client: client.hang(62.5))}
    metrics = night.serve()
    assert metrics["rounds"] == 4 and len(night.events("late")) == 1
    rounds = [record["round"] for record in metrics["clients"]["c1"]["rounds"]]
    assert 1 not in rounds and rounds[-1] == 4 and metrics["clients"]["c1"]["status"] == "ok"
    assert night.events("client_away")[0]["text"] == "c1: no answer within 60 s"


def test_a_late_client_joins_a_running_federation(tmp_path: Path) -> None:
    night = Night(tmp_path, rounds=4)
    night.clients["c0"].start()
    night.office.at(37.0, night.clients["c1"].start)
    metrics = night.serve(start=False)
    assert metrics["clients"]["c1"]["final"] and metrics["clients"]["c1"]["rounds"][-1]["round"] == 4
    assert metrics["clients"]["c1"]["rounds"][0]["round"] > 1


def test_a_short_cut_of_the_connection_changes_nothing(undisturbed: dict[str, torch.Tensor], tmp_path: Path) -> None:
    night = Night(tmp_path)

    def cut(client: SimulatedClient) -> None:
        night.office.cut = True
        night.office.after(4, lambda: setattr(night.office, "cut", False))

    night.clients["c1"].faults = {"round": ("after", cut)}
    night.serve()
    assert same(night, undisturbed) and not night.events("client_away")


def test_a_long_cut_is_outlived(tmp_path: Path) -> None:
    night = Night(tmp_path, quorum=2)

    def cut(client: SimulatedClient) -> None:
        night.office.cut = True
        night.office.after(40, lambda: setattr(night.office, "cut", False))

    night.clients["c1"].faults = {"round": ("after", cut)}
    metrics = night.serve()
    assert metrics["rounds"] == 3 and all(c["final"] for c in metrics["clients"].values())
    assert night.events("quorum_missed") and len(night.events("client_away")) == 2


def test_a_round_without_a_quorum_is_held_again_from_where_everybody_stood(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    night = Night(tmp_path, quorum=2)
    night.clients["c1"].faults = {"round": ("before", lambda client: client.kill(back_after=20))}
    night.serve()
    assert night.events("quorum_missed") and same(night, undisturbed)


def test_a_quorum_that_never_comes_ends_with_the_reason(tmp_path: Path) -> None:
    night = Night(tmp_path, quorum=2)
    night.clients["c1"].faults = {"round": ("before", lambda client: client.kill())}
    with pytest.raises(QuorumError, match="Only 1 of 2 clients answered, the quorum is 2"):
        night.serve()
    assert night.office.now > WAITS["patience"]


def test_nobody_comes(tmp_path: Path) -> None:
    night = Night(tmp_path)
    with pytest.raises(QuorumError, match="Only 0 of 2 clients came"):
        night.serve(start=False)


class Killed(BaseException):
    """Nothing may catch it, as nothing catches a kill."""


@pytest.mark.parametrize(("count", "when"), [(1, "before"), (1, "after"), (2, "before"), (2, "after"), (4, "after")])
def test_the_server_killed_and_started_again_changes_nothing(
    count: int, when: str, undisturbed: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night, commit, calls = Night(tmp_path), RunStore.commit, []

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
            night.serve()
    metrics = night.serve(start=False)
    assert metrics["rounds"] == 3 and same(night, undisturbed)


def test_a_full_disk_ends_the_client_and_nothing_else(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night, client, save = Night(tmp_path), None, ClientStore.save_state
    client = night.clients["c1"]

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
    night.serve()
    assert client.lives == 2 and same(night, undisturbed)


def test_a_client_that_lost_its_state_joins_anew(tmp_path: Path) -> None:
    night = Night(tmp_path, rounds=5)

    def burn(client: SimulatedClient) -> None:
        client.kill(back_after=9)
        shutil.rmtree(tmp_path / "c1" / "state")

    night.clients["c1"].faults = {"round": ("before", burn)}
    metrics = night.serve()
    assert metrics["clients"]["c1"]["final"] and metrics["clients"]["c1"]["rounds"][-1]["round"] == 5
    assert "no saved state" in night.events("client_away")[-1]["text"]


def test_a_client_of_another_run_is_refused_on_both_sides(tmp_path: Path) -> None:
    night = Night(tmp_path)
    ClientStore(tmp_path / "c1" / "state").write_json("run.json", {"run": "0123456789abcdef"})
    metrics = night.serve()
    assert "belongs to run 01234567" in metrics["clients"]["c1"]["status"] and metrics["clients"]["c0"]["final"]
    assert "belongs to run 01234567" in night.clients["c1"].stopped[0]


def test_a_kit_of_another_federation_is_refused_on_both_sides(tmp_path: Path) -> None:
    night = Night(tmp_path)
    night.clients["c1"].federation = "0" * 32
    metrics = night.serve()
    assert metrics["clients"]["c1"]["final"] is None and metrics["clients"]["c0"]["final"]
    assert [e["text"] for e in night.events("refused")] == ["c1: its kit belongs to another federation"]
    assert night.clients["c1"].stopped[0] == "its kit belongs to another federation"


def test_of_two_processes_with_one_identity_the_younger_is_served(tmp_path: Path) -> None:
    night = Night(tmp_path)
    older = SimulatedClient(night.office, "c1", night.clients["c1"].make)
    older.start()
    night.office.clients["c1"] = night.clients["c1"]
    night.clients["c1"].lives = 1  # its incarnations are numbered on
    night.office.at(0.5, night.clients["c1"].start)
    night.clients["c0"].start()
    metrics = night.serve(start=False)
    assert metrics["rounds"] == 3 and metrics["clients"]["c1"]["final"]
    assert "another process has taken up the same identity" in night.events("refused")[0]["text"]


def test_strangers_and_garbage_are_refused_and_disturb_nobody(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    night = Night(tmp_path)
    night.office.at(1.0, lambda: night.office.letters.append(("mallory", b"\0\0\0\2{}")))
    night.office.at(3.0, lambda: night.office.letters.append(("c0", b"\xff" * 40)))
    night.serve()
    assert same(night, undisturbed)
    texts = [e["text"] for e in night.events("refused")]
    assert texts[0].startswith("mallory: it is not a participant") and texts[1].startswith("c0: This is no letter")


def test_who_writes_without_end_fills_neither_the_time_nor_the_disk(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    night = Night(tmp_path)
    hello = {"federation": "f", "version": "1", "busy": False, "doing": {}}
    letters = [("c0", b"rubbish"), ("c0", Letter("hello", hello | {"incarnation": "x" * 500}).pack())]
    night.office.at(1.0, lambda: night.office.letters.extend(letters * 2500))
    night.serve()
    assert same(night, undisturbed)
    refused = night.events("refused")
    assert len(refused) == 201 and "not listed any more" in refused[-1]["text"]


def test_answers_that_come_twice_or_again_rounds_later_count_once(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    night = Night(tmp_path)
    deliver = SimulatedClient._post

    def twice(client: SimulatedClient, letter: Any) -> bool:
        if letter.kind == "answer":
            for delay in (0.0, 5.0, 17.0):
                night.office.after(delay, lambda: night.office.letters.append((client.name, letter.pack())))
        return deliver(client, letter)

    for client in night.clients.values():
        client._post = twice.__get__(client)
    night.serve()
    assert same(night, undisturbed) and night.events("late")


def test_a_clients_kit_exports_and_predicts_without_its_run(tmp_path: Path) -> None:
    night = Night(tmp_path)
    night.serve()
    for name, kit in night.kits.items():
        if name != "server":
            client = next(c for c in night.experiment.clients if c.name == name)
            kit.keep_own({"model": client.model, "train": client.train, "test": client.test})
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(next(iter(read_rows("demo:choice?split=test&n=2")))) + "\n")
    exported = CliRunner().invoke(app, ["export", str(tmp_path / "c1"), "--out", str(tmp_path / "lora")])
    assert exported.exit_code == 0 and (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    answered = CliRunner().invoke(app, ["predict", str(tmp_path / "c1"), "--file", str(rows)])
    assert answered.exit_code == 0 and "prediction" in json.loads(answered.output)
