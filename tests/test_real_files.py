"""Real data and a real checkpoint, where they lie beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from federations import small

from h2tune import federation
from h2tune.config import load_config
from h2tune.participant.base_models import ModelPool
from h2tune.plan import make_plan

SHARED = Path(__file__).parents[2] / "shared"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
needs_data = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the real data is not beside the repository")
needs_weights = pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="the real checkpoint is not there")


@needs_weights
def test_real_checkpoint_by_name_knows_its_stories_and_federates(tmp_path: Path) -> None:
    folder = SHARED / "weights" / "stories260K-llama"
    base = ModelPool("cpu").get(str(folder))
    ids = base.tokenizer("Once upon a time, there was a little girl named Lily.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = base.model(input_ids=ids, labels=ids).loss
    assert loss < 2.0  # a uniform guess over its 512 tokens is 6.2
    experiment = small(rounds=1)
    rows = [c.model_copy(update={"model": str(folder)}) for c in experiment.clients[:1]] + experiment.clients[1:]
    metrics = federation.run(experiment.model_copy(update={"clients": rows}), tmp_path / "run")
    assert metrics["clients"]["c0"]["final"]["nats"] < metrics["clients"]["c0"]["base"]["nats"]


@needs_data
@pytest.mark.parametrize("name", ["glue", "math"])
def test_benchmarks_plan_and_run_small_on_real_data(name: str, tmp_path: Path) -> None:
    experiment = load_config(BENCHMARKS / f"{name}.yaml")
    assert make_plan(experiment).problems == []
    rows = [c.model_copy(update={"n_train": 40, "n_test": 10, "max_length": 96}) for c in experiment.clients]
    training = experiment.training.model_copy(update={"steps": 3, "batch_size": 4, "head_steps": 3})
    changes = {"clients": rows, "rounds": 1, "baseline": "none", "training": training}
    metrics = federation.run(experiment.model_copy(update=changes), tmp_path / "run")
    for client in metrics["clients"].values():
        assert client["status"] == "ok"
        assert client["final"]["nats"] > 0
