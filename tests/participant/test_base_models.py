"""A base in memory: what it was when it was loaded, it is again when its adapters are gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_folders import LABELS, TASKS, model_folder, one_client

from h2tune import federation
from h2tune.participant.base_models import LoadedModel, ModelPool, adapter_name

HEAD_LEARNS = {"steps": 2, "batch_size": 4, "head_steps": 4, "learning_rate": 0.05}


@pytest.mark.parametrize("family", ["bert-cls", "llama-cls"])
@pytest.mark.parametrize("way", ["release", "detach"])
def test_a_trained_head_leaves_with_its_adapter(family: str, way: str, tmp_path: Path) -> None:
    folder, pool = model_folder(tmp_path / "model", family), ModelPool("cpu")
    base = pool.get(str(folder), labels=len(LABELS))
    before = weights(base)
    experiment = one_client(tmp_path, folder, TASKS["classify"], method="local", training=HEAD_LEARNS)
    federation.run(experiment, tmp_path / "run", models=pool)
    assert pool.get(str(folder), labels=len(LABELS)) is base and base.peft is not None
    if way == "release":
        pool.release()
    else:
        base.detach(adapter_name("c"))
    after = weights(base)
    assert base.peft is None and after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(p.requires_grad for p in base.model.parameters())


def weights(base: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
