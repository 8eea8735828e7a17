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
from h2tune.aggregation.secure_mean import SecureMean
from h2tune.core.packing import unpack_core
from h2tune.methods.core_bytes import DOWN_EACH, UP_EACH
from h2tune.methods.core_server import CoreServer
from h2tune.methods.registry import MethodError
from h2tune.plan import make_plan
from h2tune.protocol.codec import decode, encode
from h2tune.transport.base import Absent
from h2tune.transport.inprocess import InProcess


class Killed(BaseException):
    """The server's process is killed."""


SECURE = {"secure_aggregation": {}, "rounds": 2}


def core(run: Path) -> torch.Tensor:
    return load_file(run / "server" / "core.safetensors")["S"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    federation.run(small(clients=4, rounds=2, same_model=True), out)
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
    metrics = federation.run(small(clients=4, same_model=True, **SECURE), tmp_path / "run")
    found, wanted = core(tmp_path / "run"), core(plain)
    assert wanted.abs().max() > 0.01 and (found - wanted).abs().max() < 1e-3
    assert len(sent) == 8 and len({t.numpy().tobytes() for t in sent}) == 8
    for tensor in sent:  # a core has most of its bits clear; what was sent has half of them set
        share = sum(int((tensor >> b & 1).sum()) for b in range(64)) / (64 * tensor.numel())
        assert abs(share - 0.5) < 0.02
    record = metrics["clients"]["c0"]["rounds"][0]
    assert record["bytes_up"] > 8 * sent[0].numel()
    planned = make_plan(small(clients=4, same_model=True, **SECURE))
    assert [row.bytes_up for row in planned.clients] == [sent[0].nbytes + 3 * UP_EACH] * 4
    assert "no single one" in planned.privacy[0]


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
    with pytest.raises(RuntimeError, match=r"Only [03] of 3"):
        federation.run(small(clients=3, **SECURE), tmp_path / "run")
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert "the server asks for a core without masks" in events


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clients": 2}, "from a sum of two each knows the other's"),
        ({"secure_aggregation": {"threshold": 5}}, "threshold 5 can never be met by 4 clients"),
        ({"secure_aggregation": {"threshold": 3}, "clients": 6}, "must be more than half"),
        ({"secure_aggregation": {"threshold": 2}, "clients": 3}, "threshold 2 is below 3"),
        ({"wire": {"dtype": "int8"}}, "excludes wire"),
        ({"weights": "uniform", "privacy": {"clip": 1, "noise": 1}}, "excludes privacy"),
        ({"method": {"name": "h2tune", "aggregate": "median"}}, "needs aggregate: mean"),
        ({"method": "fedit", "same_model": True}, "only methods that share a core"),
        (
            {"method": "fedsb", "same_model": True},
            "bases of fedsb are made from private gradients, which are sent open",
        ),
    ],
)
def test_what_it_excludes_is_said_before_training(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=says):
        federation.run(small(**({"clients": 4} | SECURE | changes)), tmp_path / "run")


def lying(name: str, changed: dict[str, Any]) -> Any:
    """Changes a client's answers, by their kind."""

    def lie(answers: list[tuple[str, Any]]) -> Any:
        for sender, data in answers:
            message = decode(data)
            if sender == name and message.kind in changed:
                changed[message.kind](message)
                data = encode(message)
            yield sender, data

    return lie


def false_shares(message: Any) -> None:
    shares = message.payload.meta["shares"]
    message.payload.meta["shares"] = dict.fromkeys(shares, "0123456789abcdef" * 2)


def test_who_reveals_false_shares_is_excluded_by_name_and_the_others_go_on(tmp_path: Path) -> None:
    config = small(clients=4, rounds=2, same_model=True, secure_aggregation={"threshold": 3})
    server, _ = build(config, tmp_path, lying("c1", {"unmask": false_shares}))
    server.run()
    assert server.members["c1"].status == "stopped" and "its share of a secret of" in server.members["c1"].reason
    assert server.round == 2 and [len(server.members[n].rounds) for n in ("c0", "c2", "c3")] == [2, 2, 2]
    assert server.method.S.any() and "passed over" not in (tmp_path / "events.jsonl").read_text()


def test_where_too_few_true_shares_are_left_the_round_is_passed_over_and_the_liar_named(tmp_path: Path) -> None:
    config = small(clients=3, rounds=1, same_model=True, secure_aggregation={"threshold": 3})
    server, _ = build(config, tmp_path, lying("c0", {"unmask": false_shares}))
    server.run()
    assert server.members["c0"].status == "stopped" and not server.method.S.any() and server.round == 1
    assert "round 1 is passed over: only 2 clients helped" in (tmp_path / "events.jsonl").read_text()


def test_a_run_of_which_nothing_comes_says_why_it_ends(tmp_path: Path) -> None:
    def other_core(message: Any) -> None:
        masked = message.payload.tensors["masked"]
        masked += torch.randint(-(2**62), 2**62, masked.shape)

    config = small(clients=3, rounds=9, same_model=True, secure_aggregation={})
    server, _ = build(config, tmp_path, lying("c2", {"train": other_core}))
    with pytest.raises(RuntimeError, match=r"(?s)Nothing came of 3 rounds in a row.*implausible sum"):
        server.run()
    assert server.round == 3 and not server.method.S.any()


@pytest.mark.parametrize("end", ["killed", "revoked"])
def test_a_round_is_not_held_again_after_its_sum_was_read(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held again without one client, the difference of the two sums would be that client's core."""
    asked: list[int] = []
    exchange, reveal = InProcess.exchange, SecureMean.reveal

    def watched(self: InProcess, requests: dict[str, bytes], fresh: bool = False) -> Any:
        asked.extend({m.round for m in map(decode, requests.values()) if m.kind == "unmask"})
        return exchange(self, requests, fresh)

    def interrupted(self: SecureMean, revealed: Any) -> None:
        reveal(self, revealed)
        if len(asked) == 2:
            raise Killed

    monkeypatch.setattr(InProcess, "exchange", watched)
    config, before = small(clients=4, same_model=True, **SECURE | {"rounds": 3}), []
    if end == "killed":
        monkeypatch.setattr(SecureMean, "reveal", interrupted)
        with pytest.raises(Killed):
            federation.run(config, tmp_path / "run")
        before.append(core(tmp_path / "run"))
        federation.run(config, tmp_path / "run", resume=True)
    else:
        monkeypatch.setattr(InProcess, "revoked", lambda self: ["c3"] if len(asked) == 2 else [], raising=False)
        federation.run(config, tmp_path / "run")
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert asked == [1, 2, 3] and "round 2 is passed over" in events and "round 3 committed" in events
    if before:
        assert not torch.equal(before[0], core(tmp_path / "run"))


def test_planned_bytes_grow_with_the_other_clients_as_those_that_travel_do(tmp_path: Path) -> None:
    up, down = [], []
    for clients in (4, 7):
        config = small(clients, same_model=True, rounds=1, secure_aggregation={"threshold": clients - 1})
        planned = make_plan(config).clients[0]
        server, _ = build(config, tmp_path / str(clients))
        server.open()
        server.one_round()
        record = server.members["c0"].rounds[-1]
        up.append((planned.bytes_up, record["bytes_up"]))
        down.append((planned.bytes_down, record["bytes_down"]))
    for (first, first_sent), (second, second_sent) in (up, down):
        assert second - first == pytest.approx(second_sent - first_sent, rel=0.05)


def test_entries_that_fewer_than_three_clients_cover_stay_with_their_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models with other blocks than the rest: what only they cover is not summed, and not sent to anybody."""
    config = small(clients=5, **SECURE)
    plan = make_plan(config)
    got: dict[str, int] = {}
    pack = CoreServer.pack

    def watched(self: CoreServer, core: torch.Tensor, client: str) -> dict[str, torch.Tensor]:
        tensors = pack(self, core, client)
        got[client] = tensors["values"].nbytes
        return tensors

    monkeypatch.setattr(CoreServer, "pack", watched)
    server, clients = build(config, tmp_path)
    server.run()
    assert got == {row.name: row.bytes_down - 4 * DOWN_EACH for row in plan.clients}
    share = server.method.in_company().sum() / (sum(server.method.covers(n).int() for n in clients) > 0).sum()
    assert f"{share:.0%} of the core's entries are covered by 3 clients and summed, the rest" in plan.privacy[1]
    count = sum(server.method.covers(name).int() for name in clients)
    alone = (count > 0) & (count < 3)
    assert alone.any() and not server.method.S[alone].any() and server.method.S[count >= 3].any()
    own = [c.method.core for c in clients.values()]
    assert any((core.S.detach() * (core.coverage & alone)).any() for core in own)
    assert "entries are covered by 3 clients and summed; clients keep the rest" in server.method.found()


def test_no_core_is_sent_twice_where_cores_have_stopped_learning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the default frames cores learn in the first rounds; two sums of the same ones would differ by a core."""
    sums: list[torch.Tensor] = []
    reveal = SecureMean.reveal

    def watched(self: SecureMean, revealed: Any) -> None:
        reveal(self, revealed)
        sums.append(self.mean.clone())

    def away(answers: list[tuple[str, Any]]) -> Any:
        for name, data in answers:
            last = decode(data).kind == "train" and len(sums) == 3
            yield name, Absent("gone") if last and name == "c2" else data

    monkeypatch.setattr(SecureMean, "reveal", watched)
    config = small(
        clients=4,
        same_model=True,
        rounds=4,
        quorum=3,
        secure_aggregation={},
        method={"name": "h2tune", "frames": "effect"},
    )
    server, clients = build(config, tmp_path, away)
    server.run()
    learnt = [phase for phase in clients["c0"].method.phases(2, 2) if phase != "specific"]
    assert not learnt and server.members["c2"].rounds[-1]["round"] == 3 and sums[0].any()
    for later in sums[1:]:
        assert (later - sums[0]).abs().max() < 4 * 2.0**-32


def one_smaller() -> Any:
    """Four clients, of which the last has half of the core: the rest of it has three clients' company."""
    config = small(clients=4, same_model=True, quorum=3, **SECURE)
    clients = [c.model_copy(update={"keep": 0.5}) if c.name == "c3" else c for c in config.clients]
    return config.model_copy(update={"clients": clients})


def test_who_is_lost_again_and_again_costs_one_attempt_and_not_the_round(tmp_path: Path) -> None:
    lost: list[str] = []

    def drop(answers: list[tuple[str, Any]]) -> Any:
        for name, data in answers:
            if name == "c2" and decode(data).kind == "train":
                lost.append(name)
                yield name, Absent("connection lost")
            else:
                yield name, data

    server, _ = build(one_smaller(), tmp_path, drop)
    transport = server.session.transport
    transport.returned = lambda: ["c2"] if lost else []  # type: ignore[method-assign]
    server.run()
    assert server.round == 2 and len(lost) == 2  # once in each round
    assert [len(server.members[name].rounds) for name in ("c0", "c1", "c2", "c3")] == [2, 2, 0, 2]


def test_at_the_end_only_what_was_summed_is_handed_out(tmp_path: Path) -> None:
    def none(message: Any) -> None:
        message.payload.meta["mask"] = "00" * 32

    server, _ = build(one_smaller(), tmp_path, lying("c2", {"keys": none}))
    server.run()
    core, coverage = unpack_core(server.method.download("c0").tensors, server.method.shape, 4)
    assert core[..., :2, :2].any() and coverage[..., :2, :2].any() and not coverage[..., 2:, :].any()
    again = server.commits.last().method
    assert torch.equal(unpack_core(again.download("c0").tensors, again.shape, 4)[1], coverage)


def test_as_published_what_is_not_summed_stays_with_its_client(tmp_path: Path) -> None:
    server, clients = build(small(clients=5, method="h2tune-published", **SECURE), tmp_path)
    server.open()
    server.method.selected = list(clients)
    for name, client in clients.items():
        core = client.method.core
        core.D.data.fill_(1)
        client.method.receive(server.method.download(name))
        reached = server.method.in_company() & server.method.covers(name)
        alone = bool((server.method.covers(name) & ~reached).any())
        assert (core.D == 0).any() and bool(core.D.any()) == alone
    assert any(client.method.core.D.any() for client in clients.values())
