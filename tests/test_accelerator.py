"""Every method trains on a GPU, and comes to what it comes to on a CPU. Skipped where there is no GPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import exchange_methods  # noqa: F401 - registers the methods of several exchanges
import pytest
import torch
from distill.lada_federation import lada
from federations import small

from h2tune.config import Experiment
from h2tune.config.schema import RowPrivacy
from h2tune.federation import run
from h2tune.methods.registry import known_methods
from h2tune.participant.base_models import ModelPool

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

METHODS: dict[str, dict[str, Any]] = {
    name: {"method": {"name": name, "sentences": 4} if name == "fedmkt" else name}
    for name in known_methods()
    if not name.startswith("lada")
}
METHODS |= {
    "frames: effect": {"method": {"name": "h2tune", "frames": "effect"}},
    "frames: random": {"method": {"name": "h2tune", "frames": "random", "mask": "entries"}},
    "top blocks": {"method": {"name": "h2tune", "frames": "effect"}, "blocks": 0.5},
    "one pass for two clients": {"parallel": 2},
    "secure aggregation": {"clients": 3, "secure_aggregation": {"threshold": 3}},
    "curves": {"evaluation": {"curves": True}},
}


def finals(experiment: Experiment, folder: Path) -> dict[str, float]:
    return {name: c["final"]["nats"] for name, c in run(experiment, folder)["clients"].items()}


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_a_method_comes_to_the_same_on_a_gpu(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "secure_aggregation" in changes:
        pytest.importorskip("cryptography")
    # A GPU holds bases in bfloat16. That alone moves what frames from anchors come to by .04 after two rounds, on a CPU, too.
    monkeypatch.setattr(ModelPool, "_dtype", lambda self: torch.float32)
    here, there = (
        finals(
            small(**({"rounds": 2, "same_model": True} | changes)).model_copy(update={"device": device}),
            tmp_path / device,
        )
        for device in ("cpu", "cuda")
    )
    assert here.keys() == there.keys()
    for name, nats in there.items():
        assert math.isfinite(nats) and nats == pytest.approx(here[name], rel=0.05, abs=0.05), name


def on_a_gpu(experiment: Experiment) -> Experiment:
    return experiment.model_copy(update={"device": "cuda"})


def test_noise_for_clients_on_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    experiment = small(rounds=2, weights="uniform", privacy={"clip": 1, "noise": 1})
    assert all(math.isfinite(nats) for nats in finals(on_a_gpu(experiment), tmp_path).values())


def test_noise_for_rows_on_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    experiment = small(rounds=2)
    clients = [c.model_copy(update={"row_privacy": RowPrivacy(clip=1, noise=1)}) for c in experiment.clients]
    experiment = experiment.model_copy(update={"clients": clients})
    assert all(math.isfinite(nats) for nats in finals(on_a_gpu(experiment), tmp_path).values())


@pytest.mark.parametrize("host", ["local", "h2tune"])
def test_reasoning_flows_on_a_gpu(host: str, tmp_path: Path) -> None:
    assert all(math.isfinite(nats) for nats in finals(on_a_gpu(lada(host)), tmp_path).values())


def test_a_run_on_a_gpu_goes_on_for_another_round(tmp_path: Path) -> None:
    experiment = on_a_gpu(small(rounds=1))
    run(experiment, tmp_path)
    metrics = run(experiment.model_copy(update={"rounds": 2}), tmp_path, resume=True, changed=("rounds",))
    assert all(math.isfinite(client["final"]["nats"]) for client in metrics["clients"].values())
