"""LaDa in a simulation whose clients share passes of their base model."""

from __future__ import annotations

from pathlib import Path

import pytest
from distill.lada_federation import client, lada
from federations import simulated

from h2tune.participant.base_models import ModelPool


def test_side_by_side_everybody_learns_the_same(tmp_path: Path) -> None:
    """Teacher and students on one base train and score in shared passes."""
    rows = [
        client("big", "zoo:llama", n=40),
        *(client(name, "zoo:llama", seed) for name, seed in (("s1", 1), ("s2", 2))),
    ]
    finals, learnt = [], []
    for parallel in (1, 3):
        experiment = lada(changes={"accept": False}, clients=rows).model_copy(update={"parallel": parallel})
        server, _ = simulated(experiment, tmp_path / str(parallel), ModelPool("cpu"))
        server.run()
        finals.append([value for member in server.members.values() for value in (member.final or {}).values()])
        learnt.append([row["learnt"] for row in server.method.report()["flows"]["table"]])
    assert finals[1] == pytest.approx(finals[0], rel=1e-3)
    assert learnt[0] == learnt[1] and sum(learnt[0]) > 0
