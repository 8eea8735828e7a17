"""A method drives its round: several exchanges, of texts or tensors, in process and over a network, whoever is killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distill.lada_federation import lada
from exchange_methods import STEPPED, STEPS, TEXTS
from fault_scenario import FaultScenario
from federations import build, small
from safetensors.torch import load_file
from torch import Tensor

from h2tune.errors import ProtocolError
from h2tune.protocol.codec import Message, Payload, decode, encode
from h2tune.store import RunStore

METHODS = {TEXTS.name: "judge", STEPPED.name: "step 25"}  # and an exchange in the middle of a round
ROUNDS = 3


def settings(method: str) -> dict[str, Any]:
    return {"method": method, "rounds": ROUNDS, "evaluation": {"every": 9}}


def states(folder: Path, client: str) -> dict[str, Tensor]:
    """What the client's disk holds after the last round."""
    return load_file(folder / f"state-{ROUNDS:06d}.safetensors")


def in_process(method: str, folder: Path) -> dict[str, dict[str, Tensor]]:
    server, clients = build(small(**settings(method)), folder)
    server.run()
    return {name: states(folder / "clients" / name, name) for name in clients}


def over_network(scenario: FaultScenario) -> dict[str, dict[str, Tensor]]:
    return {name: states(scenario.folder / name / "state", name) for name in scenario.clients}


def same(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].keys() == b[n].keys() and all(torch.equal(a[n][k], b[n][k]) for k in a[n]) for n in a
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, dict[str, Tensor]]]:
    known: dict[str, dict[str, dict[str, Tensor]]] = {}

    def of(method: str) -> dict[str, dict[str, Tensor]]:
        if method not in known:
            known[method] = in_process(method, tmp_path_factory.mktemp(method))
        return known[method]

    return of


def test_texts_go_round_three_times(tmp_path: Path) -> None:
    server, clients = build(small(**settings(TEXTS.name)), tmp_path)
    server.run()
    for client in clients.values():
        heard = client.method.heard
        assert len(heard) == ROUNDS * 4  # two clients judge two sentences
        assert heard[0].startswith("c0 read: c0 in round 1") and heard[-1].startswith("c1 read: c1 in round 3")
        assert "having heard 8" in heard[-1]
    assert server.members["c0"].rounds[-1]["bytes_up"] > 3 * 200  # all three exchanges are counted


def test_fifty_exchanges_make_one_round_and_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    commit = RunStore.commit
    monkeypatch.setattr(RunStore, "commit", lambda self, n, *rest: (commits.append(n), commit(self, n, *rest)))
    server, clients = build(small(**settings(STEPPED.name)), tmp_path)
    server.run()
    assert commits == [0, 1, 2, 3] and clients["c0"].method.count == ROUNDS * STEPS


@pytest.mark.parametrize("method", METHODS)
def test_over_the_network_is_in_process_bit_for_bit(method: str, undisturbed: Any, tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, **settings(method))
    scenario.serve()
    assert same(over_network(scenario), undisturbed(method))


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("method", METHODS)
def test_a_client_killed_in_mid_round_starts_the_round_again(
    method: str, moment: str, undisturbed: Any, tmp_path: Path
) -> None:
    """The other client has gone on by then: both must stand where the round began."""
    scenario = FaultScenario(tmp_path, **settings(method))
    scenario.clients["c1"].faults = {METHODS[method]: (moment, lambda client: client.kill(back_after=2))}
    metrics = scenario.serve()
    assert metrics["rounds"] == ROUNDS and len(scenario.events("round_interrupted")) == 1
    assert same(over_network(scenario), undisturbed(method))


class Killed(BaseException):
    """Nothing may catch it, as nothing catches a kill."""


@pytest.mark.parametrize("method", METHODS)
def test_the_server_killed_in_mid_round_starts_the_round_again(method: str, undisturbed: Any, tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, **settings(method))

    def kill(client: Any) -> None:
        raise Killed

    scenario.clients["c1"].faults = {METHODS[method]: ("before", kill)}
    with pytest.raises(Killed):
        scenario.serve()
    scenario.clients["c1"].start()  # its process was answering when it met the plant
    metrics = scenario.serve(start=False)
    assert metrics["rounds"] == ROUNDS and same(over_network(scenario), undisturbed(method))


def test_a_client_gone_in_mid_round_is_left_out_and_taken_back(tmp_path: Path) -> None:
    """It comes back when the round is over; the method goes on with the other one."""
    scenario = FaultScenario(tmp_path, **settings(TEXTS.name))
    scenario.clients["c1"].faults = {"judge": ("before", lambda client: client.kill(back_after=8))}
    metrics = scenario.serve()
    assert metrics["rounds"] == ROUNDS and [r["round"] for r in metrics["clients"]["c0"]["rounds"]] == [1, 2, 3]
    assert 1 not in [r["round"] for r in metrics["clients"]["c1"]["rounds"]] and metrics["clients"]["c1"]["final"]


def test_a_client_that_is_back_while_the_round_goes_on_starts_it_again(undisturbed: Any, tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, **settings(STEPPED.name))
    scenario.clients["c1"].faults = {"step 25": ("before", lambda client: client.kill(back_after=30))}
    scenario.serve()
    assert len(scenario.events("round_interrupted")) == 1 and same(over_network(scenario), undisturbed(STEPPED.name))


@pytest.mark.parametrize("key", ["step", "round", "attempt", "state", "kind", "client"])
def test_an_answer_to_something_else_is_no_answer(key: str, tmp_path: Path) -> None:
    def change(answers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        found = []
        for name, data in answers:
            message = decode(data)
            if name == "c1" and message.kind == "judge":
                setattr(message, key, getattr(message, key) + (1 if isinstance(getattr(message, key), int) else "x"))
            found.append((name, encode(message)))
        return found

    server, _ = build(small(**settings(TEXTS.name)), tmp_path, change)
    server.run()
    assert server.members["c1"].standing.startswith("stopped: it ") and server.members["c0"].final


def test_a_client_of_another_version_is_refused_when_it_joins(tmp_path: Path) -> None:
    """Both sides say it: the client's answer is what the server shows."""

    def older(message: Message) -> None:
        message.payload.meta["method"] |= {"version": 2, "actions": ["propose"]}

    scenario = FaultScenario(tmp_path, **settings(TEXTS.name))
    make = scenario.clients["c1"].make

    def participant() -> Callable[[bytes], bytes]:
        answer = make()

        def told_otherwise(data: bytes) -> bytes:
            message = decode(data)
            if message.kind == "join":
                older(message)
            return answer(encode(message))

        return told_otherwise

    scenario.clients["c1"].make = participant
    metrics = scenario.serve()
    status = metrics["clients"]["c1"]["status"]
    assert (
        "the server runs toy-texts version 2 (actions propose)" in status
        and "this client has toy-texts version 1" in status
    )
    assert scenario.clients["c1"].stopped and metrics["clients"]["c0"]["final"]


OLDER = {  # what a checkout with the exchange of before says that it runs
    "fedit": {"version": 1},
    "colora": {"version": 1},
    "h2tune": {"version": 1},
    "lada": {"host": {"name": "fedit", "version": 1, "actions": ["train"], "ends": "train"}},
}


@pytest.mark.parametrize("name", OLDER)
def test_a_method_whose_exchange_has_changed_refuses_the_one_of_before(name: str, tmp_path: Path) -> None:
    """LaDa counts its host's version as its own."""
    _, clients = build(lada("fedit") if name == "lada" else small(method=name), tmp_path)
    client = next(iter(clients.values()))
    said = client.kind.actions(client.method.settings)
    payload = Payload(meta={"method": said | OLDER[name]})
    which, version = ("fedit", 2) if name == "lada" else (name, said["version"])
    with pytest.raises(ProtocolError, match=rf"server runs .*{which} version 1 .* has .*{which} version {version} "):
        client.handle(encode(Message("join", "r", 0, client.name, name, payload)))
    client.kind.check_peer(said, client.method.settings)
