"""Whole rounds of secure aggregation, in process and over the post network: the mean is right, the server sees noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fault_scenario import FaultScenario
from federations import build, small
from safetensors.torch import load_file

pytest.importorskip("Crypto", reason="PyCryptodome is not installed: pip install -e '.[secure]'")

from h2tune import federation
from h2tune.methods.core_server import CoreServer
from h2tune.methods.registry import MethodError
from h2tune.plan import make_plan
from h2tune.protocol.codec import decode, encode
from h2tune.transport.inprocess import InProcess

SECURE = {"secure_aggregation": {}, "rounds": 2}


def core(run: Path) -> torch.Tensor:
    return load_file(run / "server" / "core.safetensors")["S"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    federation.run(small(clients=4, rounds=2), out)
    return out


def test_the_result_is_that_of_plain_means_but_for_rounding(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[torch.Tensor] = []
    add = CoreServer.add

    def watched(self: Any, reply: Any) -> None:
        sent.append(reply.payload.tensors["masked"].clone())
        add(self, reply)

    monkeypatch.setattr(CoreServer, "add", watched)
    metrics = federation.run(small(clients=4, **SECURE), tmp_path / "run")
    found, wanted = core(tmp_path / "run"), core(plain)
    assert wanted.abs().max() > 0.01 and (found - wanted).abs().max() < 1e-3
    assert len(sent) == 8 and len({t.numpy().tobytes() for t in sent}) == 8
    for tensor in sent:  # a core has most of its bits clear; what was sent has half of them set
        share = sum(int((tensor >> b & 1).sum()) for b in range(64)) / (64 * tensor.numel())
        assert abs(share - 0.5) < 0.02
    record = metrics["clients"]["c0"]["rounds"][0]
    assert record["bytes_up"] > 8 * sent[0].numel()
    planned = make_plan(small(clients=4, **SECURE))
    assert [row.bytes_up for row in planned.clients] == [sent[0].nbytes] * 4 and "no single one" in planned.privacy[0]


def test_who_drops_out_in_the_midst_is_not_in_the_sum_and_the_round_is_held(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, clients=4, **SECURE)
    scenario.clients["c3"].faults = {"train": ("before", lambda client: client.kill())}
    metrics = scenario.serve()
    assert metrics["rounds"] == 2 and metrics["clients"]["c3"]["rounds"] == []
    assert all(len(metrics["clients"][n]["rounds"]) == 2 for n in ("c0", "c1", "c2"))
    assert scenario.outcome_of_core().abs().max() > 0.01


def test_with_too_few_left_nothing_is_revealed_and_the_round_is_held_again(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path, clients=4, quorum=1, **SECURE)
    for name in ("c2", "c3"):
        scenario.clients[name].faults = {"train": ("before", lambda client: client.kill(back_after=20))}
    metrics = scenario.serve()
    assert metrics["rounds"] == 2 and len(metrics["clients"]["c3"]["rounds"]) == 2
    assert "2 of 4 clients answered" in scenario.events("warning")[0]["text"] and scenario.events("quorum_missed")


def test_a_client_sends_nothing_without_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = InProcess.exchange

    def without_shares(self: InProcess, requests: dict[str, bytes], fresh: bool = False) -> Any:
        changed = {}
        for name, data in requests.items():
            message = decode(data)
            message.payload.meta.pop("sealed", None)
            changed[name] = encode(message)
        return exchange(self, changed, fresh)

    monkeypatch.setattr(InProcess, "exchange", without_shares)
    with pytest.raises(RuntimeError, match="Only 0 of 3|Only 3 of 3"):
        federation.run(small(clients=3, **SECURE), tmp_path / "run")
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert "the server asks for a core without masks" in events


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clients": 2}, "from a sum of two each knows the other's"),
        ({"secure_aggregation": {"threshold": 5}}, "threshold 5 can never be met by 4 clients"),
        ({"secure_aggregation": {"threshold": 2}}, "must be more than half"),
        ({"wire": {"dtype": "int8"}}, "excludes wire"),
        ({"weights": "uniform", "privacy": {"clip": 1, "noise": 1}}, "excludes privacy"),
        ({"method": {"name": "h2tune", "aggregate": "median"}}, "needs aggregate: mean"),
        ({"method": "fedit", "same_model": True}, "only methods that share a core"),
    ],
)
def test_what_it_excludes_is_said_before_training(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=says):
        federation.run(small(**({"clients": 4} | SECURE | changes)), tmp_path / "run")


def test_a_sum_that_false_shares_revealed_is_not_committed(tmp_path: Path) -> None:
    def lie(answers: list[tuple[str, Any]]) -> Any:
        for name, data in answers:
            message = decode(data)
            shares = message.payload.meta.get("shares", {})
            if name == "c0" and any(len(share) == 32 for share in shares.values()):
                message.payload.meta["shares"] = dict.fromkeys(shares, "0123456789abcdef" * 2)
                data = encode(message)
            yield name, data

    server, _ = build(small(clients=3, rounds=1, secure_aggregation={"threshold": 3}), tmp_path, lie)
    with pytest.raises(RuntimeError, match="Only 0 of 3|Only 3 of 3"):
        server.run()
    assert "implausible sum" in (tmp_path / "events.jsonl").read_text() and not server.method.S.any()
