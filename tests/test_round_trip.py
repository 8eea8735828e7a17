"""What leaves a run is what was scored in it: predict, the PEFT export and the merged export, family by family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import CLASSIFIERS, DECODERS, perturb
from model_folders import ROWS, TASKS, model_folder, one_client
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from h2tune.adapter import TriLoraConfig
from h2tune.config import Experiment
from h2tune.exporting import export
from h2tune.inference import predict
from h2tune.participant.base_models import ModelPool, adapter_name
from h2tune.participant.prepare import client_base, load_data
from h2tune.participant.scoring import Score, score
from h2tune.store import RunStore
from h2tune.tasks import build_task
from h2tune.utils.seeds import derive

EVERY = [(family, kind) for family in DECODERS for kind in TASKS]
EVERY += [(family, "classify") for family in CLASSIFIERS if family != "llama-cls"]


def finished(experiment: Experiment, run: Path) -> Score:
    """A run directory with a trained adapter, and the figures of its test rows, as a client makes them."""
    store, client = RunStore(run), experiment.clients[0]
    store.create(experiment)
    task, name = build_task(client.task), adapter_name(client.name)
    base = client_base(client, task, ModelPool("cpu"))
    data = load_data(client, task, base, seed=derive(0, client.name, "data"))
    base.attach(name, TriLoraConfig(r=2, residual=True, target_modules=base.layout.targets, parts=base.layout.parts or None,
                                    task_type="SEQ_CLS" if task.kind == "classify" else "CAUSAL_LM"))  # fmt: skip
    assert base.peft is not None
    with torch.random.fork_rng():
        base.renew_head(name)
        perturb(base.peft, name)
    store.client(client.name).save_adapter(base.peft, name)
    return score(base.activate(name), base.tokenizer, task, data.test.examples, data.test.encoded, 3)


def rescored(experiment: Experiment, model: Any) -> Score:
    client = experiment.clients[0]
    task = build_task(client.task)
    base = client_base(client, task, ModelPool("cpu"))
    data = load_data(client, task, base, seed=derive(0, client.name, "data"))
    return score(model, base.tokenizer, task, data.test.examples, data.test.encoded)


@pytest.mark.parametrize(("family", "kind"), EVERY)
def test_what_leaves_is_what_was_scored(family: str, kind: str, tmp_path: Path) -> None:
    experiment = one_client(tmp_path, model_folder(tmp_path / "model", family), TASKS[kind])
    wanted = finished(experiment, tmp_path / "run")
    right = {"generate": "word", "choice": "label", "classify": "label"}[kind]
    answers = list(predict(tmp_path / "run", "c", tmp_path / "rows.jsonl", batch_size=5))
    task = build_task(TASKS[kind])
    hits = [task.score(task.read(row), answer["prediction"]) for row, answer in zip(ROWS, answers, strict=True)]
    assert sum(hits) / len(hits) == wanted.metric and {a[right] for a in answers} == {r[right] for r in ROWS}

    auto = AutoModelForSequenceClassification if kind == "classify" else AutoModelForCausalLM
    options = {"num_labels": 3} if kind == "classify" else {}
    said = export(tmp_path / "run", "c", tmp_path / "lora").notes
    assert str((tmp_path / "model").resolve()) in said[0] and "--to merged" in said[1]
    base = auto.from_pretrained(tmp_path / "model", dtype=torch.float32, **options)
    base.config.pad_token_id = 0
    plain = rescored(experiment, PeftModel.from_pretrained(base, tmp_path / "lora").eval())
    assert plain.metric == wanted.metric and abs(plain.nats - wanted.nats) < 1e-5

    export(tmp_path / "run", "c", tmp_path / "merged", "merged", "float32")
    merged = rescored(experiment, auto.from_pretrained(tmp_path / "merged"))
    assert merged.metric == wanted.metric and abs(merged.nats - wanted.nats) < 1e-4
