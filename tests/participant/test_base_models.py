"""A base in memory: what it was when it was loaded, it is again when its adapters are gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_folders import LABELS, TASKS, model_folder, one_client
from safetensors.torch import load_file

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


@pytest.mark.parametrize("family", ["bert-cls", "llama-cls"])
def test_a_head_that_the_checkpoint_holds_is_where_training_starts(family: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", family)
    head = "score.weight" if family == "llama-cls" else "classifier.weight"
    held = load_file(folder / "model.safetensors")[head]
    labels = [*LABELS, "more"]
    for count, kept in ((3, True), (4, False)):  # with other labels it does not fit, and is drawn anew
        task = TASKS["classify"] | {"labels": labels[:count]}
        experiment = one_client(
            tmp_path, folder, task, method="local", training={"head_steps": 0, "learning_rate": 1e-12}
        )
        run = tmp_path / f"run-{count}"
        federation.run(experiment, run)
        saved = load_file(run / "clients" / "c" / "adapter" / "adapter_model.safetensors")
        (trained,) = (tensor for name, tensor in saved.items() if name.endswith(head))
        assert len(trained) == count and torch.allclose(trained[:3], held, atol=1e-4) is kept


def weights(base: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
