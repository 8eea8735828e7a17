"""Whole federations in one process: rounds, resume, messages, baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import build, equal, outcome, small

from h2tune import federation
from h2tune.client import Client
from h2tune.config import ConfigError
from h2tune.errors import MethodError
from h2tune.methods.h2tune import H2TuneServer
from h2tune.methods.local import LocalClient
from h2tune.participant.base_models import ModelPool
from h2tune.participant.trainer import NanLossError
from h2tune.plan import make_plan
from h2tune.protocol.codec import Message, Payload, decode, encode
from h2tune.server import QuorumError, Server
from h2tune.session import Status
from h2tune.store import RunStore
from h2tune.tasks.demo_problems import demo_anchors
from h2tune.transport.inprocess import InProcess
from h2tune.utils.files import Claim, StoreError


def test_run_directory_holds_what_it_should(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["rounds"] == 3 and set(metrics["clients"]) == {"c0", "c1"}
    for name, client in metrics["clients"].items():
        assert client["status"] == "ok" and len(client["rounds"]) == 3
        assert 0 <= client["final"]["metric"] <= 1 and client["final"]["nats"] > 0
        assert client["base"]["nats"] > 0
        assert (finished / "clients" / name / "adapter" / "adapter_config.json").is_file()
    events = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events].count("round_committed") == 3
    steps = [e["text"] for e in events if e["event"] == "client_set_up"]
    assert [text for text in steps if text.startswith("c0 ")] == [
        "c0 has joined",
        "c0 has answered 'describe'",
        "c0 is set up",
    ]
    assert events[-1]["event"] == "run_finished"
    assert RunStore(finished).open()[1] == small()


def test_same_seed_same_result_and_other_seed_another(finished: Path, tmp_path: Path) -> None:
    federation.run(small(), tmp_path / "again")
    assert equal(outcome(finished), outcome(tmp_path / "again"))
    federation.run(small(seed=1), tmp_path / "other")
    assert not equal(outcome(finished), outcome(tmp_path / "other"))


def test_order_of_arrival_changes_nothing(tmp_path: Path) -> None:
    experiment = small(clients=3, rounds=2)
    straight, _ = build(experiment, tmp_path / "a")
    straight.run()
    turned, _ = build(experiment, tmp_path / "b", lambda answers: reversed(answers))
    turned.run()
    assert torch.equal(straight.method.S, turned.method.S)
    assert straight.method.S.abs().sum() > 0


def test_equal_clients_aggregate_to_one_of_them(tmp_path: Path) -> None:
    def twins(count: int, folder: Path) -> torch.Tensor:
        experiment = small(clients=count, same_model=True, rounds=1)
        rows = [c.model_copy(update={"name": f"c{i}"}) for i, c in enumerate([experiment.clients[0]] * count)]
        server, clients = build(experiment.model_copy(update={"clients": rows}), folder)
        for client in clients.values():
            client.context.data_seed = "the same"
        server.run()
        return server.method.S

    one, three = twins(1, tmp_path / "one"), twins(3, tmp_path / "three")
    assert one.abs().sum() > 0
    assert torch.equal(one, three)


def test_upload_is_the_trained_core_bit_for_bit_and_nothing_else(tmp_path: Path) -> None:
    sent: list[Message] = []

    def watch(answers: list) -> list:
        sent.extend(m for _, data in answers if (m := decode(data)).kind == "train")
        return answers

    server, clients = build(small(rounds=1), tmp_path / "run", watch)
    server.run()
    assert {m.client for m in sent} == {"c0", "c1"}
    for message in sent:
        assert message.payload.tensors.keys() == {"values", "pairs"}
        assert set(message.payload.meta) == {"report"}
        client = clients[message.client]
        state = client.store.load_state(1)
        core = state["core.S"]
        covered = client.method.core.coverage
        assert torch.equal(message.payload.tensors["values"], core[covered])
        assert core.abs().sum() > 0
        pairs = int(covered.flatten(2).any(-1).sum())
        assert message.payload.tensors["values"].numel() == pairs * 4 * 4


def test_nan_loss_stops_that_client_only_and_quorum_counts(tmp_path: Path) -> None:
    experiment = small(rounds=2)
    rows = [experiment.clients[0], experiment.clients[1].model_copy(update={"learning_rate": 1e30})]
    server, _ = build(experiment.model_copy(update={"clients": rows}), tmp_path / "a")
    server.run()
    assert "not a number" in server.members["c1"].standing and "rows" in server.members["c1"].standing
    assert server.members["c0"].final is not None
    strict = experiment.model_copy(update={"clients": rows, "quorum": 2})
    server, _ = build(strict, tmp_path / "b")
    with pytest.raises(QuorumError, match=r"quorum is 2.*The first excluded client, c1: .*not a number"):
        server.run()


def test_clients_on_one_model_share_its_memory(tmp_path: Path) -> None:
    _, clients = build(small(clients=6), tmp_path / "run")
    models = {id(c.context.base.model) for c in clients.values()}
    assert len(models) == 3


def test_generate_and_classify_share_frozen_tensors() -> None:
    models = ModelPool("cpu")
    first, second = models.get("zoo:llama"), models.get("zoo:llama", labels=2)
    mine, theirs = dict(first.model.named_parameters()), dict(second.model.named_parameters())
    shared = [n for n in theirs if n in mine]
    assert shared and all(mine[n].data_ptr() == theirs[n].data_ptr() for n in shared)


def test_sampling_takes_the_asked_share_and_repeats() -> None:
    experiment = small(clients=6, participation=0.5)
    server = Server(experiment, "r", [c.name for c in experiment.clients], InProcess({}), None)
    for member in server.members.values():
        member.status = Status.ACTIVE
    rounds = [server.select(n) for n in range(1, 8)]
    assert all(len(r) == 3 for r in rounds)
    assert rounds == [server.select(n) for n in range(1, 8)]
    assert len(set(map(tuple, rounds))) > 1


def test_patience_stops_early(tmp_path: Path) -> None:
    rate = {"steps": 2, "batch_size": 4, "learning_rate": 1e-12, "core_learning_rate": 1e-12}
    server, _ = build(small(rounds=6, patience=1, training=rate), tmp_path / "run")
    server.run()
    assert server.round < 6


def test_wire_round_trip_of_a_message() -> None:
    message = Message("train", "r", 3, "a", "h2tune", Payload({"x": torch.randn(2, 3)}, {"k": [1, "two"]}), 7)
    back = decode(encode(message), run="r")
    assert torch.equal(back.payload.tensors["x"], message.payload.tensors["x"])
    assert (back.payload.meta, back.examples, back.round) == ({"k": [1, "two"]}, 7, 3)


def test_baselines_select_and_tracking(tmp_path: Path) -> None:
    experiment = small(rounds=1, baseline=["local", "h2tune-unshared"], select="best", tracking=["tensorboard"])
    metrics = federation.run(experiment, tmp_path / "run")
    for name, client in metrics["clients"].items():
        assert client["local"]["nats"] > 0 and client["unshared"]["nats"] > 0
        better = client["local"]["validation_nats"] < client["final"]["validation_nats"]
        assert client["kept"] == ("local" if better else "federated")
        own = tmp_path / "run" / "clients" / name / "adapter" / "adapter_model.safetensors"
        alone = tmp_path / "run" / "baselines" / "local" / "clients" / name / "adapter" / "adapter_model.safetensors"
        assert (own.read_bytes() == alone.read_bytes()) == better
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_a_tracker_without_its_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("h2tune.participant.context.get_available_trackers", list)
    experiment = small(rounds=1, tracking=["wandb", "tensorboard"])
    with pytest.raises(ConfigError, match=r"pip install wandb\n.*pip install 'h2tune\[tracking\]'"):
        federation.run(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert make_plan(experiment).problems == [
        "tracking: wandb needs a package: pip install wandb",
        "tracking: tensorboard needs a package: pip install 'h2tune[tracking]'",
    ]


def test_select_best_keeps_the_federated_adapter_of_a_client_that_was_lost_in_the_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = LocalClient.train

    def losing(self: LocalClient, round: int, payload: Payload) -> Payload:
        if self.context.name == "c1":
            raise NanLossError("the loss is not a number")
        return train(self, round, payload)

    monkeypatch.setattr(LocalClient, "train", losing)
    metrics = federation.run(small(rounds=1, quorum=1, baseline="local", select="best"), tmp_path / "run")
    lost = metrics["clients"]["c1"]
    assert (lost["local"], lost["kept"]) == (None, "federated") and lost["final"] is not None
    assert metrics["clients"]["c0"]["local"] is not None


def test_a_bug_in_a_method_is_not_taken_for_clients_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(self: H2TuneServer, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        raise TypeError("a mistake in this file")

    server, _ = build(small(), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(H2TuneServer, "open", buggy)
        with pytest.raises(TypeError, match="a mistake in this file"):
            server.open()

    def unfit(self: H2TuneServer, joined: dict[str, Payload], described: dict[str, Payload]) -> dict[str, Payload]:
        raise MethodError("c0 and c1 have no slot in common")

    server, _ = build(small(), tmp_path / "other")
    monkeypatch.setattr(H2TuneServer, "open", unfit)
    with pytest.raises(MethodError, match="no slot in common"):
        server.open()


def test_baseline_is_what_the_method_alone_gives(tmp_path: Path) -> None:
    federation.run(small(rounds=2, method="local"), tmp_path / "alone")
    federation.run(small(rounds=2, baseline="local"), tmp_path / "beside")
    assert equal(outcome(tmp_path / "alone"), outcome(tmp_path / "beside" / "baselines" / "local"))


def test_every_schedule_ends_with_the_last_round(tmp_path: Path) -> None:
    """A rate that reached its end early would rise again: cosine schedules are periodic."""
    for number, method in enumerate(
        [
            "h2tune",
            {"name": "h2tune", "alternation": "joint"},
            {"name": "h2tune", "train_factors": False},
            {"name": "h2tune", "alternation": "part", "shared_part": 0.3},
            "local",
        ]
    ):
        server, clients = build(small(rounds=2, method=method), tmp_path / str(number))
        server.run()
        for client in clients.values():
            for group in client.method.groups.values():
                rates = [g["lr"] for g in group.optimiser.param_groups]
                assert max(rates) < 1e-6, method


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bf16"}, {"accumulation": 2}, {"checkpointing": True}, {"dropout": 0.1, "schedule": "linear"}],
    ids=str,
)
def test_training_options_train(changes: dict[str, Any], tmp_path: Path) -> None:
    server, clients = build(
        small(rounds=2, scored=8, training={"steps": 6, "batch_size": 4} | changes), tmp_path / "run"
    )
    server.run()
    for client in clients.values():
        first, last = (server.members[client.name].rounds[i]["validation"]["nats"] for i in (0, 1))
        assert last < server.members[client.name].base["nats"]
        assert first > 0
    assert server.method.S.abs().sum() > 0


def test_checkpointing_changes_no_result(tmp_path: Path) -> None:
    cores = []
    for flag in (False, True):
        training = {"steps": 4, "batch_size": 4, "checkpointing": flag}
        server, _ = build(small(clients=1, rounds=1, training=training), tmp_path / str(flag))
        server.run()
        cores.append(server.method.S)
    assert torch.allclose(cores[0], cores[1], atol=1e-6)


def test_no_private_row_can_influence_the_frames_that_are_sent(tmp_path: Path) -> None:
    """Two clients with the same model, seed and name, and data that have nothing in common."""
    sent = []
    for kind in ("fill", "choice"):
        experiment = small(clients=1)
        other = {"task": f"demo-{kind}", "train": f"demo:{kind}?split=train&n=30&seed={len(sent) + 5}",
                 "test": f"demo:{kind}?split=test&n=8", "validation": None}  # fmt: skip
        config = experiment.clients[0].model_copy(update=other)
        client = Client(config, experiment, ModelPool("cpu"), demo_anchors())
        client.method.join()
        sent.append(encode(Message("describe", "r", 0, "c0", "h2tune", client.method.describe(Payload()))))
    assert len(sent[0]) > 10_000 and sent[0] == sent[1]


def test_a_run_that_another_process_carries_on_is_refused(tmp_path: Path) -> None:
    federation.run(small(rounds=1), tmp_path)
    before = (tmp_path / "events.jsonl").read_bytes()
    other = Claim(tmp_path)
    other.take()
    with pytest.raises(StoreError, match="is in use: another process trains there"):
        federation.run(small(rounds=1), tmp_path, resume=True)
    assert (tmp_path / "events.jsonl").read_bytes() == before
    other.give_up()
    assert federation.run(small(rounds=1), tmp_path, resume=True)["finished"]
