"""LaDa where a run is stopped between two rounds or killed in the middle of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distill.lada_federation import lada, same, scripted, states, true_path
from federations import build

from h2tune.client import Client
from h2tune.participant.base_models import ModelPool
from h2tune.server import Server
from h2tune.store import RunStore
from h2tune.transport.inprocess import InProcess


class Killed(BaseException):
    """Nothing may catch it, as nothing catches a kill."""


@pytest.mark.parametrize(
    ("name", "round"),
    [
        ("lada", 2),
        ("lada-published", 1),
        pytest.param("lada", 1, marks=pytest.mark.slow),
        pytest.param("lada-published", 2, marks=pytest.mark.slow),
    ],
)
def test_stopped_after_a_round_and_resumed_it_is_the_same_run(name: str, round: int, tmp_path: Path) -> None:
    def play(folder: Path, stop: int | None) -> Any:
        changes = {"name": name, "slice": 8} | ({"samples": 2} if name == "lada" else {})
        server, clients = build(lada(changes=changes, rounds=3), folder)
        scripted(clients["big"], true_path)
        if stop is None:
            server.run()
            return server, clients
        server.open()
        for _ in range(stop):
            assert server.one_round() == ""
        return server, clients

    whole, clients = play(tmp_path / "whole", None)
    _, first = play(tmp_path / "cut", round)
    store = RunStore(tmp_path / "cut")
    experiment = first["big"].context.experiment
    identity, _ = store.open(experiment)
    again, models, context = {}, ModelPool("cpu"), first["big"].context
    for c in experiment.clients:
        own = store.client(c.name)
        again[c.name] = Client(c, experiment, models, context.anchors, own, None, context.accelerator)
    scripted(again["big"], true_path)
    server = Server(experiment, identity, list(again), InProcess(again), store)
    server.resume()
    server.run()
    assert same(states(clients), states(again)) and same(whole.method.state(), server.method.state())
    assert whole.method.report() == server.method.report()
    assert {n: m.final for n, m in whole.members.items()} == {n: m.final for n, m in server.members.items()}


def test_killed_in_the_phase_the_round_begins_again_bit_for_bit(tmp_path: Path) -> None:
    def make(folder: Path) -> Any:
        server, clients = build(lada(changes={"accept": False}), folder)
        scripted(clients["big"], true_path)
        return server, clients

    whole, clients = make(tmp_path / "whole")
    whole.run()
    server, others = make(tmp_path / "cut")

    def kill(client: str, round: int, phase: str, step: int, steps: int, loss: float) -> None:
        if (client, round, phase, step) == ("s2", 2, "distil", 1):
            others["s2"].context.watch = None
            raise Killed

    others["s2"].context.watch = kill
    with pytest.raises(Killed):
        server.run()
    server.method = server.commits.last().method
    server.run()
    assert same(states(clients), states(others)) and whole.method.report() == server.method.report()
