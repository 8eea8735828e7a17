"""One method of each kind over the real engine: a client killed, the server killed, the connection cut; bit for bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from distill.lada_federation import client as student
from distill.lada_federation import lada, question_file
from federations import small
from loopback import SECONDS, Session, Tap, engines, free_port, through, until
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")

from h2tune import federation
from h2tune.config import Experiment
from h2tune.deployment.provision import provision

ROUNDS = 6
KINDS = ("h2tune", "rolora", "fedmkt", "secure", "lada")  # a core, factors in turns, logits, several exchanges, texts


def experiment(kind: str, folder: Path) -> Experiment:
    network = {"port": free_port(), "gather": SECONDS, "silence": 300}
    common: dict[str, Any] = {"rounds": ROUNDS, "network": network, "evaluation": {"every": 9}}
    common["training"] = {"steps": 4, "batch_size": 4, "warmup": 0}
    if kind == "lada":
        source = question_file(folder / "public.jsonl")
        rows = [student("big", "zoo:llama", n=60), student("s1", n=8), student("s2", n=8, seed=2)]
        changes = {"slice": 24, "accept": False, "gate": False, "filter": "all"}
        return lada(changes=changes, clients=rows, public={"source": source, "task": "demo-fill"}, **common)
    methods = {"fedmkt": {"name": "fedmkt", "sentences": 4}, "secure": "h2tune"}
    if kind == "secure":
        common |= {"secure_aggregation": {"threshold": 3}, "clients": 3}  # fewer would go on without the killed one
    return small(same_model=kind == "rolora", method=methods.get(kind, kind), rank=2, **common)


def adapters(folders: dict[str, Path]) -> dict[str, Tensor]:
    found = {}
    for name, folder in folders.items():
        tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
        found |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
    return found


def updates(log: Path) -> Counter[str]:
    """How often a client told the end of each round's phases."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("round ")]
    return Counter(line.partition(" update ")[0] for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_client_a_killed_server_and_a_cut_change_nothing(kind: str, tmp_path: Path) -> None:
    asked = experiment(kind, tmp_path)
    names = [client.name for client in asked.clients]
    federation.run(asked, tmp_path / "run")
    wanted = adapters({name: tmp_path / "run" / "clients" / name for name in names})
    provision(asked, tmp_path / "kits")
    tap, session = Tap(asked.network.port), Session(asked, tmp_path / "kits")
    through(tmp_path / "kits" / names[0], tap.door)
    try:
        for name in ("server", *names):
            session.start(name)
        for round, victim in ((1, names[1]), (2, "server")):
            until(lambda round=round: session.committed(round), f"round {round}")
            session.processes[victim].kill()
            session.processes[victim].wait()
            session.start(victim)
        until(lambda: session.committed(3), "round 3")
        tap.cut_after = len(tap.seen)  # at the next byte of the first client
        session.finish()
    finally:
        session.close()
        tap.close()
    if kind in (
        "h2tune",
        "rolora",
        "fedmkt",
    ):  # rounds of one exchange: the client that ran on trained each round once
        assert set(updates(tmp_path / "kits" / f"{names[0]}.log").values()) == {1}
    found = adapters({name: tmp_path / "kits" / name / "state" for name in names})
    assert tap.cuts == 1 and found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    until(lambda: not engines(tmp_path), "no process is left")
