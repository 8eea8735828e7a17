"""Cores on their way from clients to the mean: robust rules in whole rounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import Tampering, build, equal, outcome, small

from h2tune import federation
from h2tune.methods.registry import MethodError
from h2tune.plan import make_plan
from h2tune.protocol.codec import decode, encode
from h2tune.store import RunStore
from h2tune.transport.base import Absent

BRIEF = {"steps": 4, "batch_size": 2}


def shared_after_a_round(folder: Path, change: Any = None, **options: Any) -> Any:
    server, _ = build(small(3, same_model=True, training=BRIEF, **options), folder)
    if change:
        server.session.transport = Tampering(server.session.transport, change)
    server.open()
    server.one_round()
    return server


def poisoned(answers: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The last client's update, a thousand times too large and of the other sign."""
    for index, (name, data) in enumerate(answers):
        message = decode(data)
        if name == "c2" and message.kind == "train":
            message.payload.tensors["values"] = message.payload.tensors["values"] * -1000
            answers[index] = name, encode(message)
    return answers


def test_median_and_mean_of_a_round_are_those_of_its_updates(tmp_path: Path) -> None:
    sent: dict[str, torch.Tensor] = {}

    def watch(answers: list) -> list:
        sent.update({n: m.payload.tensors["values"] for n, d in answers if (m := decode(d)).kind == "train"})
        return answers

    for aggregate, rule in (("median", lambda x: x.median(0).values), ("trimmed", lambda x: x.sort(0).values[1])):
        server = shared_after_a_round(tmp_path / aggregate, watch, method={"name": "h2tune", "aggregate": aggregate})
        covered = server.method.S.flatten(2).any(-1)
        assert torch.equal(server.method.S[covered].flatten(), rule(torch.stack(list(sent.values()))))


@pytest.mark.parametrize(
    ("aggregate", "key", "value", "reader"),
    [("mean", "radius", 1.0, "bounded"), ("agreeing", "radius", 9.0, "bounded"), ("median", "trim", 0.1, "trimmed"),
     ("trimmed", "faulty", 1, "krum, multi-krum, closest")],
)  # fmt: skip
def test_a_setting_of_another_rule_is_told(aggregate: str, key: str, value: float, reader: str) -> None:
    config = small(5, same_model=True, method={"name": "h2tune", "aggregate": aggregate, key: value})
    said = f"method.{key} has no effect with aggregate: {aggregate}; it belongs to {reader}"
    plan = make_plan(config)
    assert said in plan.warnings and not plan.problems


def test_closest_refuses_to_compare_too_many_sets() -> None:
    config = small(30, same_model=True, method={"name": "h2tune", "aggregate": "closest"})
    assert any("lower `faulty`" in problem for problem in make_plan(config).problems)


@pytest.mark.parametrize(
    "aggregate",
    [
        "median",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("trimmed", "closest", "agreeing", "bounded")),
    ],
)
def test_a_poisoned_client_moves_robust_cores_little(aggregate: str, tmp_path: Path) -> None:
    method = {"name": "h2tune", "aggregate": aggregate}
    clean = shared_after_a_round(tmp_path / "clean", None, method=method).method.S
    bad = shared_after_a_round(tmp_path / "bad", poisoned, method=method).method.S
    mean = shared_after_a_round(tmp_path / "mean", poisoned).method.S
    assert (bad - clean).norm() < 2 * clean.norm() < (mean - clean).norm() / 10


@pytest.mark.parametrize("aggregate", ["krum", "multi-krum"])
def test_too_few_clients_are_an_error_before_training(aggregate: str, tmp_path: Path) -> None:
    config = small(4, method={"name": "h2tune", "aggregate": aggregate})
    assert any("needs 5 clients" in problem for problem in make_plan(config).problems)
    with pytest.raises(MethodError, match="needs 5 clients"):
        federation.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("aggregate", ["median", "agreeing", "multi-krum"])
def test_robust_rules_need_every_entry(aggregate: str) -> None:
    """With `top_k` most updates of an entry are missing: a median would never move."""
    config = small(5, method={"name": "h2tune", "aggregate": aggregate}, wire={"top_k": 0.1})
    assert any("with wire.top_k most entries of each are missing" in problem for problem in make_plan(config).problems)


@pytest.mark.parametrize(
    ("lost", "did"), [(["c0"], "the coordinate median was taken"), (["c0", "c1"], "the core stays")]
)
def test_a_round_that_shrank_is_told(lost: list[str], did: str, tmp_path: Path) -> None:
    def lose(answers: list) -> list:
        away = Absent("it did not answer")
        return [(n, d if n not in lost or decode(d).kind != "train" else away) for n, d in answers]

    server = shared_after_a_round(tmp_path / "run", lose, method={"name": "h2tune", "aggregate": "median"})
    assert bool(server.method.S.any()) == (len(lost) == 1)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    told = [e["text"] for e in events if e["event"] == "warning" and e["round"] == 1]
    left = 3 - len(lost)
    assert len(told) == 1 and told[0].startswith(f"round 1: median needs 3 updates and this round has {left}: {did}")


def test_with_the_bad_one_excluded_the_rule_goes_on_with_the_others(tmp_path: Path) -> None:
    def spoil(answers: list) -> list:
        return [(n, d if n != "c0" or decode(d).kind != "train" else b"") for n, d in answers]

    server = shared_after_a_round(tmp_path / "run", spoil, method={"name": "h2tune", "aggregate": "closest"})
    assert server.members["c0"].standing.startswith("stopped: ") and server.method.S.any()
    assert "needs 3 updates" not in (tmp_path / "run" / "events.jsonl").read_text()


SMALLER = [
    {"dtype": "int8"},
    {"dtype": "bfloat16", "download": "bfloat16"},
    {"top_k": 0.1},
    {"dtype": "int8", "top_k": 0.02},
]


def test_asking_for_full_messages_changes_no_bit(tmp_path: Path) -> None:
    plain = shared_after_a_round(tmp_path / "plain").method.S
    assert torch.equal(plain, shared_after_a_round(tmp_path / "said", wire={"dtype": "float32"}).method.S)
    whole = shared_after_a_round(tmp_path / "whole", wire={"top_k": 1.0}).method.S
    torch.testing.assert_close(plain, whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("wire", SMALLER, ids=str)
def test_the_server_adds_what_clients_believe_they_sent(wire: dict, tmp_path: Path) -> None:
    server, clients = build(small(2, same_model=True, training=BRIEF, wire=wire), tmp_path / "run")
    server.open()
    server.one_round()
    sent = [c.method.core.S.detach() - c.method.sent.lost for c in clients.values()]
    covered = clients["c0"].method.core.coverage
    torch.testing.assert_close(server.method.S[covered], (sum(sent) / 2)[covered], rtol=1e-5, atol=1e-8)
    assert all(c.method.sent.lost.any() for c in clients.values())
    server.one_round()
    assert all(len(m.rounds) == 2 and m.standing == "ok" for m in server.members.values())


@pytest.mark.parametrize("wire", SMALLER[1:], ids=str)
def test_a_run_with_smaller_messages_resumes_bit_for_bit(wire: dict, tmp_path: Path, monkeypatch: Any) -> None:
    config = small(training=BRIEF, wire=wire)
    federation.run(config, tmp_path / "whole")
    original, calls = RunStore.commit, []

    def dying(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "commit", dying)
        with pytest.raises(KeyboardInterrupt):
            federation.run(config, tmp_path / "run")
    federation.run(config, tmp_path / "run", resume=True)
    assert equal(outcome(tmp_path / "whole"), outcome(tmp_path / "run"))


def test_an_update_in_another_code_excludes_the_client(tmp_path: Path) -> None:
    def full(answers: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        for index, (name, data) in enumerate(answers):
            message = decode(data)
            if name == "c2" and message.kind == "train":
                values = message.payload.tensors["values"]
                message.payload.tensors = {"values": values.float(), "pairs": message.payload.tensors["pairs"]}
                answers[index] = name, encode(message)
        return answers

    server = shared_after_a_round(tmp_path / "run", full, wire={"dtype": "int8"})
    assert "malformed" in server.members["c2"].standing and server.members["c0"].standing == "ok"


@pytest.mark.parametrize("method", ["fedit", "celora", "pfedlora", "fedmkt"])
def test_methods_that_share_something_else_refuse_smaller_messages(method: str) -> None:
    plan = make_plan(small(2, same_model=True, method=method, wire={"dtype": "int8"}))
    assert any(problem.startswith("wire:") for problem in plan.problems)


@pytest.mark.parametrize("method", ["h2tune-published", "fedsb"])
def test_methods_built_on_h2tune_have_its_options(method: str, tmp_path: Path) -> None:
    spec = {"name": method, "aggregate": "median"}
    config = small(3, same_model=True, training=BRIEF, method=spec, wire={"dtype": "int8", "download": "bfloat16"})
    server, _ = build(config, tmp_path / "run")
    server.open()
    server.one_round()
    server.one_round()
    assert server.method.S.any() and all(m.standing == "ok" for m in server.members.values())
