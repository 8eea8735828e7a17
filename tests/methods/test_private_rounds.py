"""Differential privacy in whole rounds: what is added, what is spent, when it ends, what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import Tampering, build, small

from h2tune import federation
from h2tune.aggregation.private import clipped, standard_normal
from h2tune.config import ConfigError
from h2tune.methods.core_server import CoreServer
from h2tune.methods.registry import MethodError
from h2tune.plan import make_plan
from h2tune.protocol.codec import decode, encode
from h2tune.report import write_report
from h2tune.store import RunStore

pytest.importorskip("dp_accounting")
BRIEF = {"steps": 4, "batch_size": 2}
PRIVACY = {"clip": 0.01, "noise": 1.0}


def private(clients: int = 2, privacy: dict | None = None, **changes: Any) -> Any:
    given = {"training": BRIEF, "weights": "uniform", "privacy": PRIVACY | (privacy or {})} | changes
    return small(clients, **given)


def repeatable(count: int) -> bytes:
    return random.Random(count).randbytes(count)


def events_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("wire", [{}, {"dtype": "int8"}, {"top_k": 0.2}], ids=str)
def test_a_round_adds_the_clipped_updates_and_one_draw_of_noise(wire: dict, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(CoreServer, "randomness", staticmethod(repeatable))
    server, clients = build(private(3, wire=wire), tmp_path / "run")  # three families: other depths and slots
    server.open()
    server.one_round()
    covers = {name: server.method.covers(name) for name in clients}
    total = torch.zeros(server.method.S.shape, dtype=torch.float64)
    for name, client in clients.items():
        coverage = client.method.core.coverage
        assert torch.equal(coverage, covers[name])
        if not wire:
            update = clipped(client.method.core.S.detach(), coverage, 0.01)
            assert update.norm() == pytest.approx(0.01, rel=1e-4)  # it was longer
            total += update
    count = torch.stack(list(covers.values())).sum(0)
    noise = 0.01 * standard_normal(total.shape, repeatable) / count.clamp_min(1)
    told = (server.method.S - noise) * count
    if wire:
        assert told.norm() <= 0.03 and told.any()
    else:
        torch.testing.assert_close(told[count > 0], total[count > 0], rtol=1e-3, atol=1e-7)
    assert not server.method.S[count == 0].any()


def test_the_server_clips_what_a_client_did_not(tmp_path: Path, monkeypatch: Any) -> None:
    def enlarge(answers: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        for index, (name, data) in enumerate(answers):
            message = decode(data)
            if message.kind == "train":
                message.payload.tensors["values"] = message.payload.tensors["values"] * 1e6
                answers[index] = name, encode(message)
        return answers

    monkeypatch.setattr(CoreServer, "randomness", staticmethod(repeatable))
    cores = []
    for folder, change in (("calm", lambda a: a), ("large", enlarge)):
        server, _ = build(private(privacy={"noise": 1e-3}), tmp_path / folder)
        server.session.transport = Tampering(server.session.transport, change)
        server.open()
        server.one_round()
        cores.append(server.method.S)
    torch.testing.assert_close(*cores, rtol=1e-3, atol=1e-7)


def test_a_client_that_fails_still_counts(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(CoreServer, "randomness", staticmethod(repeatable))

    def lose(answers: list) -> list:
        return [(n, d if n != "c0" or decode(d).kind != "train" else b"") for n, d in answers]

    server, clients = build(private(2, same_model=True), tmp_path / "run", lose)
    server.open()
    server.one_round()
    method = clients["c1"].method
    noise = 0.01 * standard_normal(server.method.S.shape, repeatable)
    wanted = (clipped(method.core.S.detach(), method.core.coverage, 0.01) + noise) / 2
    covered = method.core.coverage
    torch.testing.assert_close(server.method.S[covered].double(), wanted[covered], rtol=1e-4, atol=1e-8)


def test_the_run_stops_before_the_round_that_would_exceed_the_budget(tmp_path: Path) -> None:
    config = private(privacy={"noise": 1.0, "epsilon": 8.0}, rounds=4)
    plan = make_plan(config)
    assert not plan.problems and "after 2 of 4" in plan.privacy[0]
    metrics = federation.run(config, tmp_path / "run")
    assert metrics["rounds"] == 2 and metrics["privacy"]["epsilon"] <= 8.0 and metrics["privacy"]["rounds"] == 2
    assert all(client["final"] for client in metrics["clients"].values())
    events = events_of(tmp_path / "run")
    spent = [e["privacy"]["epsilon"] for e in events if e["event"] == "round_committed"]
    assert len(spent) == 2 and 0 < spent[0] < spent[1] == metrics["privacy"]["epsilon"]
    stopped = [e["text"] for e in events if e["event"] == "run_stopped"]
    assert len(stopped) == 1 and "budget of 8" in stopped[0]
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert f"ε {spent[1]:.2f} of 8, δ 1e-05" in page and "budget of 8" in page
    assert RunStore(tmp_path / "run").committed()[0] == 2
    again = federation.run(config, tmp_path / "run", resume=True)
    assert again["rounds"] == 2 and again["privacy"] == metrics["privacy"]


def test_a_resumed_round_draws_new_noise_and_remembers_what_was_spent(tmp_path: Path, monkeypatch: Any) -> None:
    config = private(rounds=2)
    original, calls, lost = RunStore.commit, [], []

    def dying(self: Any, round: int, tensors: dict, records: dict) -> None:
        calls.append(1)
        if len(calls) == 2:
            lost.append(tensors["S"].clone())
            raise KeyboardInterrupt
        original(self, round, tensors, records)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "commit", dying)
        with pytest.raises(KeyboardInterrupt):
            federation.run(config, tmp_path / "run")
    metrics = federation.run(config, tmp_path / "run", resume=True)
    found = RunStore(tmp_path / "run").committed()[1]["S"]
    # The clients trained the same; two draws of noise on one sum differ by sqrt(2) x noise x clip / count.
    assert not torch.isclose(found[found != 0], lost[0][found != 0]).any()
    assert metrics["privacy"]["rounds"] == 2


def test_two_runs_of_one_seed_have_different_noise(tmp_path: Path) -> None:
    cores = []
    for folder in ("a", "b"):
        server, _ = build(private(rounds=1), tmp_path / folder)
        server.open()
        server.one_round()
        cores.append(server.method.S)
    assert not torch.equal(*cores)


REFUSED = {
    "weights": {"weights": "examples"},
    "aggregate": {"method": {"name": "h2tune", "aggregate": "median"}},
    "share": {"method": "h2tune-unshared"},
    "patience": {"patience": 2},
    "delta": {"privacy": {**PRIVACY, "delta": 0.5}},
    "one round": {"privacy": {**PRIVACY, "epsilon": 0.1}},
    "fedsb": {"method": "fedsb"},
    "only methods": {"method": "celora"},
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_breaks_the_proof_is_refused(word: str, tmp_path: Path) -> None:
    config = small(3, **({"training": BRIEF, "weights": "uniform", "privacy": PRIVACY} | REFUSED[word]))
    problems = make_plan(config).problems
    assert len(problems) == 1 and problems[0].startswith("privacy:") and word in problems[0]
    with pytest.raises(MethodError, match=word):
        federation.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_learned_coverage_is_refused() -> None:
    config = private(method={"name": "h2tune", "mask": "entries"})
    assert not make_plan(config).problems
    fewer = config.model_copy(update={"clients": [c.model_copy(update={"keep": 0.5}) for c in config.clients]})
    assert "mask: entries" in make_plan(fewer).problems[0]


def test_a_missing_accountant_is_said(monkeypatch: Any) -> None:
    monkeypatch.setattr("h2tune.methods.core_server.has_accountant", lambda: False)
    assert any("h2tune[privacy]" in problem for problem in make_plan(private()).problems)


def test_baselines_beside_a_private_run_need_no_privacy(tmp_path: Path) -> None:
    config = private(rounds=1, baseline=["local", "h2tune-unshared"])
    metrics = federation.run(config, tmp_path / "run")
    assert metrics["mean"]["local"] is not None and metrics["mean"]["unshared"] is not None


def test_a_typing_mistake_is_told_in_the_words_of_its_section() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.clp: unknown key. Did you mean `clip`"):
        private(privacy={"clp": 1.0})
