"""LaDa over a network: in process bit for bit, whoever is killed in the phase; and with the real engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from distill.lada_federation import client, lada, question_file, same
from fault_scenario import WAITS, FaultScenario
from federations import build
from loopback import engines, free_port, until
from safetensors.torch import load_file
from torch import Tensor

from h2tune import federation
from h2tune.config import Experiment

ROUNDS = 2


def experiment(folder: Path, **keys: Any) -> Experiment:
    """A teacher that knows everyday verbs from its pretraining, and two students; public questions in a file."""
    source = question_file(folder / "public.jsonl")
    rows = [client("big", "zoo:llama", n=60), client("s1", n=8), client("s2", n=8, seed=2)]
    changes = {"slice": 24, "accept": False, "gate": False, "filter": "all"}
    return lada(changes=changes, clients=rows, rounds=ROUNDS, public={"source": source, "task": "demo-fill"}, **keys)


def states(folders: dict[str, Path]) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": tensor
        for name, folder in folders.items()
        for key, tensor in load_file(folder / f"state-{ROUNDS:06d}.safetensors").items()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Any]:
    folder = tmp_path_factory.mktemp("whole")
    server, clients = build(experiment(folder), folder / "run")
    server.run()
    table = server.method.report()["flows"]["table"]
    assert all(row["learnt"] for row in table if row["student"] != "big")
    return states({name: folder / "run" / "clients" / name for name in clients}), table


def over_network(scenario: FaultScenario) -> dict[str, Tensor]:
    return states({name: scenario.folder / name / "state" for name in scenario.clients})


def flows(scenario: FaultScenario) -> Any:
    return json.loads((scenario.folder / "server" / "run" / "metrics.json").read_text())["flows"]["table"]


@pytest.mark.parametrize(
    "fault", ["none", "a student, when it has answered", "a student, in its phase", "the teacher"]
)
def test_over_the_network_it_is_in_process_bit_for_bit(fault: str, undisturbed: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    scenario = FaultScenario(tmp_path / "net", experiment(tmp_path / "data", network=WAITS))
    plants = {
        "a student, when it has answered": ("s1", "train", "before"),
        "a student, in its phase": ("s1", "train", "after"),
        "the teacher": ("big", "train", "before"),
    }
    if fault in plants:
        name, kind, moment = plants[fault]
        scenario.clients[name].faults = {kind: (moment, lambda killed: killed.kill(back_after=2))}
    metrics = scenario.serve()
    assert metrics["rounds"] == ROUNDS and len(scenario.events("round_interrupted")) == (fault in plants)
    assert same(over_network(scenario), undisturbed[0]) and flows(scenario) == undisturbed[1]


def test_kits_hold_the_public_questions_and_nobody_elses_rows(tmp_path: Path) -> None:
    scenario = FaultScenario(tmp_path / "net", experiment(tmp_path, network=WAITS))
    for name in ("server", *scenario.clients):
        kit = tmp_path / "net" / name
        assert (kit / "public" / "public.jsonl").is_file()
        assert scenario.kits[name].experiment().public.source == str((kit / "public" / "public.jsonl").resolve())
        assert "split=train" not in (kit / "federation.yaml").read_text()


def begun(events: Path, seconds: float = 900) -> None:
    """Wait for round 2; three models are loaded and trained in four processes."""
    end = time.monotonic() + seconds
    while not (events.is_file() and "round 2:" in events.read_text()):
        assert time.monotonic() < end, "round 2 has not begun"
        time.sleep(0.1)


@pytest.mark.slow
def test_with_the_real_engine_a_teacher_at_the_servers_site_and_two_students(undisturbed: Any, tmp_path: Path) -> None:
    """Four processes, certificates, loopback; a student is killed in its phase and started again."""
    pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")
    from h2tune.deployment.provision import provision

    run = experiment(tmp_path, quorum=3, network={"port": free_port(), "gather": 900, "silence": 60})
    kits = tmp_path / "kits"
    provision(run, kits)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "h2tune"]

    def start(c: Any) -> subprocess.Popen[str]:
        own = [f"--{key}={getattr(c, key)}" for key in ("model", "train", "test", "validation")]
        line = [*command, "client", str(kits / c.name), *own, "--device", "cpu"]
        return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, text=True)

    server = subprocess.Popen(
        [*command, "server", str(kits / "server"), "--json"], env=environment, stdout=subprocess.DEVNULL
    )
    processes = {c.name: start(c) for c in run.clients}
    events = kits / "server" / "run" / "events.jsonl"
    try:
        begun(events)
        processes["s1"].kill()
        processes["s1"].wait()
        processes["s1"] = start(run.clients[1])
        assert server.wait(900) == 0 and [p.wait(300) for p in processes.values()] == [0, 0, 0]
    finally:
        for process in (server, *processes.values()):
            process.kill()
    found = states({c.name: kits / c.name / "state" for c in run.clients})
    assert same(found, undisturbed[0])
    until(lambda: not engines(kits), "no process is left")


@pytest.mark.slow
def test_over_workers_it_is_in_process_bit_for_bit(undisturbed: Any, tmp_path: Path) -> None:
    federation.run(experiment(tmp_path), tmp_path / "run", workers=2)
    assert same(states({n: tmp_path / "run" / "clients" / n for n in ("big", "s1", "s2")}), undisturbed[0])
