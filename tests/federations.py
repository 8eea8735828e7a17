"""Small experiments that the tests share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from h2tune.client import Client
from h2tune.config import Experiment, parse_config
from h2tune.participant.base_models import ModelPool
from h2tune.participant.context import make_accelerator
from h2tune.server import Server
from h2tune.simulation.clients import Groups, in_process
from h2tune.store import RunStore
from h2tune.tasks.demo_problems import demo_anchors
from h2tune.transport.inprocess import InProcess

FORMATS = ("fill", "choice", "program")
MODELS = ("zoo:llama", "zoo:gpt2", "zoo:qwen")
ANCHORS = str(Path(__file__).parent / "anchors.txt")  # fewer than the demo has: frames are made faster


def small(clients: int = 2, same_model: bool = False, scored: int = 4, **changes: Any) -> Experiment:
    """A federation of zoo models on a few generated problems, so many of them to be scored; seconds to run."""
    rows = []
    for i in range(clients):
        kind = FORMATS[i % 3]
        rows.append(
            {
                "name": f"c{i}",
                "model": MODELS[0 if same_model else i % 3],
                "task": f"demo-{kind}",
                "train": f"demo:{kind}?split=train&n=16&seed={i}",
                "validation": f"demo:{kind}?split=validation&n={scored}&seed={i}",
                "test": f"demo:{kind}?split=test&n={scored}&seed={i}",
            }
        )
    data = {"rounds": 3, "rank": 4, "anchors": ANCHORS, "clients": rows, "device": "cpu", "name": "small"}
    data["training"] = {
        "steps": 2,
        "batch_size": 4,
        "warmup": 0,
    }  # two updates: with a warm-up the first would be lost
    data["method"] = _moving(changes.pop("method", "h2tune"))
    return parse_config(data | changes)


def _moving(method: Any) -> Any:
    """H2Tune with a core that moves in every round and frames that are set up fast, unless the method says which."""
    if isinstance(method, str):
        return {"name": method, "frames": "anchor"} if method == "h2tune" else method
    return {"frames": "anchor"} | method if method.get("name") == "h2tune" else method


def simulated(experiment: Experiment, folder: Path, models: ModelPool) -> tuple[Server, dict[str, Any]]:
    """Server and clients of a simulation in this process, side by side where the experiment says so."""
    models.release()
    store = RunStore(folder)
    party = in_process(experiment, store, models)
    assert isinstance(party, Groups) is (experiment.parallel != 1)
    return Server(experiment, store.create(experiment), list(party.clients), party, store), party.clients


def core(run: Path) -> dict[str, Tensor]:
    """What is shared as of a run's last commit."""
    committed = RunStore(run).committed()
    assert committed is not None
    return committed[1]


def outcome(run: Path) -> dict[str, Tensor]:
    """Every tensor that a run ends with: the core and all adapters."""
    found = {f"core.{k}": v for k, v in core(run).items()}
    for folder in sorted((run / "clients").iterdir()):
        tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
        found |= {f"{folder.name}.{k}": v for k, v in tensors.items()}
    return found


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Tampering:
    """A transport that lets a test change the answers on their way."""

    def __init__(self, inner: Any, change: Any) -> None:
        self.inner, self.change = inner, change

    def exchange(self, requests: dict[str, bytes], fresh: bool = False) -> Iterator[tuple[str, Any]]:
        yield from self.change(list(self.inner.exchange(requests, fresh)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def build(
    experiment: Any,
    folder: Path,
    change: Any = None,
    models: ModelPool | None = None,
    anchors: Sequence[str] | None = None,
) -> tuple[Server, dict[str, Client]]:
    """Server and clients as `federation.run` makes them, with a hand on the transport; anchors are a few of the demo's."""
    models = ModelPool("cpu") if models is None else models
    accelerator = make_accelerator(experiment, "cpu")
    store = RunStore(folder)
    identity = store.create(experiment)
    anchors = demo_anchors(60) if anchors is None else anchors
    clients = {
        c.name: Client(c, experiment, models, anchors, store.client(c.name), None, accelerator)
        for c in experiment.clients
    }
    transport = InProcess(clients) if change is None else Tampering(InProcess(clients), change)
    return Server(experiment, identity, list(clients), transport, store), clients
