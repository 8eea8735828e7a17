"""Methods for equal models in whole federations: who shares, what travels, and that a kill loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from federations import build, equal, outcome, small
from safetensors.torch import load_file

from h2tune import federation
from h2tune.client import Client
from h2tune.methods.registry import MethodError, known_methods
from h2tune.protocol.codec import Payload
from h2tune.store import RunStore

NAMES = sorted(name for name, method in known_methods().items() if method.one_architecture)


def twins(clients: int = 2, **changes: Any) -> Any:
    """Clients on one base model."""
    settings = {
        "rounds": 2,
        "training": {"steps": 2, "batch_size": 4, "learning_rate": 0.01},
        "evaluation": {"every": 9},
    }
    return small(clients=clients, same_model=True, **(settings | changes))


def factors(client: Client) -> dict[str, torch.Tensor]:
    return {k: v for k, v in client.method.state().items() if k.startswith("adapter.") and k[-1] in "ABt"}


def test_the_list_is_whole() -> None:
    assert NAMES == [
        "fedex",
        "fedit",
        "fedprox",
        "fedsa",
        "ffa",
        "flexlora",
        "flora",
        "hetlora",
        "lora-fair",
        "rolora",
    ]


@pytest.mark.parametrize("name", [*NAMES, "local"])
def test_runs_and_survives_a_kill(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation.run(twins(method=name), tmp_path / "whole")
    commits, commit = [], RunStore.commit

    class Killed(BaseException):
        pass

    def dying(self: RunStore, *args: Any) -> None:
        commit(self, *args)
        commits.append(1)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "commit", dying)
        with pytest.raises(Killed):
            federation.run(twins(method=name), tmp_path / "killed")
    metrics = federation.run(twins(method=name), tmp_path / "killed", resume=True)
    assert equal(outcome(tmp_path / "whole"), outcome(tmp_path / "killed"))
    # A second stop starts from what the resumed run saved.
    states = [load_file(p) for p in sorted((tmp_path / "killed").glob("clients/*/state-000002.safetensors"))]
    wanted = [load_file(p) for p in sorted((tmp_path / "whole").glob("clients/*/state-000002.safetensors"))]
    assert len(states) == 2 and all(equal(a, b) for a, b in zip(states, wanted, strict=True))
    least = 0 if name == "local" else 10_000
    assert all(c["final"]["nats"] > 0 and c["rounds"][-1]["bytes_up"] > least for c in metrics["clients"].values())


@pytest.mark.parametrize("name", NAMES)
def test_equal_clients_stay_equal(name: str, tmp_path: Path) -> None:
    """N clients with the same data and generators are the same at the end."""
    experiment = twins(3, method=name)
    server, clients = build(experiment, tmp_path / "run")
    for client in clients.values():
        other = clients["c0"]
        client.context.data_seed = "same"
        client.context.data, client.context.task = other.context.data, other.context.task
    server.run()
    states = [factors(c) for c in clients.values()]
    assert equal(states[0], states[1]) and equal(states[0], states[2])


@pytest.mark.parametrize("name", ["fedit", "fedsa", "fedex"])
def test_a_client_without_a_twin_trains_locally(name: str, tmp_path: Path) -> None:
    """Beside twins it runs, sends nothing, and ends where local training from the same start ends."""
    rows = twins(2).clients
    lone = rows[0].model_copy(update={"name": "lone", "model": "zoo:gpt2"})
    server, clients = build(twins(2, method=name).model_copy(update={"clients": [*rows, lone]}), tmp_path / "run")
    server.open()
    start = [p.detach().clone() for p in clients["lone"].method.factors]
    server.one_round()
    assert server.method.report()["alone"] == ["lone"]
    assert server.members["lone"].rounds[-1]["bytes_up"] < 2_000 < server.members["c0"].rounds[-1]["bytes_up"]

    alone, others = build(twins(2, method="local").model_copy(update={"clients": [lone]}), tmp_path / "local")
    alone.open()
    with torch.no_grad():
        for parameter, value in zip(others["lone"].method.factors, start, strict=True):
            parameter.copy_(value)
    alone.one_round()
    for ours, theirs in zip(clients["lone"].method.factors, others["lone"].method.factors, strict=True):
        assert torch.equal(ours, theirs)


def test_flora_folds_the_exact_mean_into_the_base(tmp_path: Path) -> None:
    server, clients = build(twins(2, method="flora"), tmp_path / "run")
    server.open()
    server.one_round()
    sent = {n: factors(c) for n, c in clients.items()}
    weights = {n: len(c.context.data.train) for n, c in clients.items()}
    server.one_round()
    for client in clients.values():
        state = factors(client)
        for index in range(len(client.method.layers)):
            want = sum(weights[n] * sent[n][f"adapter.{index}.B"].double() @ sent[n][f"adapter.{index}.A"].double()
                       for n in sent) / sum(weights.values())  # fmt: skip
            torch.testing.assert_close(state[f"adapter.{index}.offset"].double(), want, atol=1e-6, rtol=1e-4)


def test_different_ranks(tmp_path: Path) -> None:
    for name in ("flora", "flexlora", "hetlora", "fedit"):  # FedIT takes one rank for all, whatever `keep` says
        experiment = twins(2, method=name)
        unequal = [c.model_copy(update={"keep": k}) for c, k in zip(experiment.clients, (0.5, 1.0), strict=True)]
        metrics = federation.run(experiment.model_copy(update={"clients": unequal}), tmp_path / name)
        ranks = [c["rounds"][-1]["bytes_up"] for c in metrics["clients"].values()]
        assert (ranks[0] < 0.6 * ranks[1]) == (name != "fedit")


def test_hetlora_prunes_and_keeps_pruned(tmp_path: Path) -> None:
    method = {"name": "hetlora", "prune": 10.0, "gamma": 0.5}
    server, clients = build(twins(2, method=method, rounds=3), tmp_path / "run")
    server.open()
    for _ in range(3):
        server.one_round()
    client = clients["c0"]
    assert int(client.method.ranks.min()) < 4
    for layer, rank in zip(client.method.layers, client.method.ranks.tolist(), strict=True):
        assert (
            not layer.trilora_A[client.context.adapter][rank:].any()
            and not layer.trilora_B[client.context.adapter][:, rank:].any()
        )


def test_a_client_that_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    server, clients = build(twins(4, method="fedit"), tmp_path)
    joined = {name: client.method.join() for name, client in clients.items()}
    method = server.method
    method.open({name: joined[name] for name in ("c0", "c1")}, {})
    joined["c2"].meta["rank"] += 1
    with pytest.raises(MethodError, match="one rank within a group"):
        method.open({"c2": joined["c2"]}, {})
    assert method.known.keys() == {"c0", "c1"}
    assert method.open({"c3": joined["c3"]}, {}).keys() == {"c3"}


def test_what_does_not_suit_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"fedit: .*only fit between equal base models.* c0, c1"):
        federation.run(small(method="fedit"), tmp_path / "a")
    late = twins(3, method="flora")
    late = late.model_copy(update={"clients": [*late.clients[:2], late.clients[2].model_copy(update={"joins": 2})]})
    with pytest.raises(MethodError, match="nobody may miss one: c2 join late"):
        federation.run(late, tmp_path / "b")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["fedit", "ffa", "rolora", "flora"])
def test_a_malformed_update_is_refused_and_the_round_goes_on(name: str, tmp_path: Path) -> None:
    for change in (lambda t: t[:-1], lambda t: t.long()):
        server, clients = build(twins(3, method=name), tmp_path / f"{name}{id(change)}")
        train = clients["c1"].method.train

        def tampering(*args: Any, train: Any = train, change: Any = change) -> Any:
            payload = train(*args)
            key = next(iter(payload.tensors))
            payload.tensors[key] = change(payload.tensors[key]).clone()
            return payload

        clients["c1"].method.train = tampering
        server.open()
        server.one_round()
        assert server.members["c1"].standing.startswith("stopped: the update of c1")
        assert server.members["c0"].standing == server.members["c2"].standing == "ok"
        assert server.round == 1


def test_who_joins_anew_is_given_everything(tmp_path: Path) -> None:
    """A client that lost its state has nothing of what it was given before."""
    server, _ = build(twins(3, method="rolora", rounds=2), tmp_path)
    server.run()
    method = server.method
    introduction = Payload(meta=method.known["c2"])
    before = set(method.download("c2").tensors)
    method.open({"c2": introduction}, {})
    assert set(method.download("c2").tensors) == {key.partition("/")[2] for key in method._keys("c2")} > before


@pytest.mark.parametrize("name", ["fedit", "fedsa", "ffa", "flexlora", "hetlora", "lora-fair", "rolora"])
def test_a_lone_client_is_no_culprit_when_another_base_joins_late(name: str, tmp_path: Path) -> None:
    """It sends nothing before and after; and a late client with its base makes it share."""
    rows = twins(2).clients
    lone = rows[0].model_copy(update={"name": "lone", "model": "zoo:gpt2"})
    late = rows[1].model_copy(update={"name": "late", "joins": 2})
    twin = lone.model_copy(update={"name": "twin", "joins": 3})
    experiment = twins(2, method=name, rounds=4).model_copy(update={"clients": [*rows, lone, late, twin]})
    server, clients = build(experiment, tmp_path / "run")
    server.open()
    assert clients["lone"].method.shared is False
    sent = []
    for _ in range(4):
        server.one_round()
        sent.append(server.members["lone"].rounds[-1]["bytes_up"])
    assert {name: str(member.standing) for name, member in server.members.items()} == dict.fromkeys(clients, "ok")
    assert max(sent[:2]) < 2_000 < min(sent[2:])
    same = [k for k in factors(clients["lone"]) if k[-1] in clients["lone"].method.sends]
    for client in ("lone", "twin"):
        clients[client].method.take(server.method.download(client))
    ours, theirs = factors(clients["lone"]), factors(clients["twin"])
    assert same and all(torch.equal(ours[k], theirs[k]) for k in same)


@pytest.mark.parametrize("name", ["fedit", "flora"])
def test_who_is_excluded_is_no_twin_any_more(name: str, tmp_path: Path) -> None:
    """The round in which it happens is judged by what clients were told; a client that is alone by then sends nothing."""
    lone = small(clients=2).clients[1]
    rows = [*twins(2).clients, lone.model_copy(update={"name": "other"}), lone.model_copy(update={"name": "twin"})]
    experiment = twins(2, method=name, rounds=4).model_copy(update={"clients": rows})
    server, clients = build(experiment, tmp_path / "run")
    server.open()
    server.one_round()
    pack = clients["c1"].method.pack
    clients["c1"].method.pack = lambda: {k: t[:1] for k, t in pack().items()}
    server.one_round()
    assert server.members["c1"].standing.startswith("stopped") and clients["c0"].method.shared
    server.one_round()  # what the last round shared is still handed out
    assert clients["c0"].method.shared is False
    before = factors(clients["c0"])
    assert not server.method.download("c0").tensors and server.method.download("twin").tensors
    server.one_round()
    assert not (name == "fedit" and equal(before, factors(clients["c0"])))
    sent = [report["bytes_up"] for report in server.members["c0"].rounds]
    assert max(sent[2:]) < 2_000 < min(sent[:2])
    assert {n: str(server.members[n].standing) for n in ("c0", "other", "twin")} == dict.fromkeys(
        ("c0", "other", "twin"), "ok"
    )
    assert server.method.report()["alone"] == ["c0"]
