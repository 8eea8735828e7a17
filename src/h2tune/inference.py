"""What comes out of a run: a client's model, loaded again, exported for others, or answering a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from h2tune import tasks
from h2tune.adapter import save_lora
from h2tune.config import ClientConfig
from h2tune.deployment.kits import Kit
from h2tune.participant.base_models import resolve_source
from h2tune.participant.batches import collate
from h2tune.participant.scoring import choose, generate
from h2tune.store import RunStore, StoreError
from h2tune.tasks.example import Example, Task
from h2tune.tasks.prompts import encode, encode_prompts
from h2tune.tasks.sources import read_rows


def is_kit(folder: Path) -> bool:
    """Whether a folder is a client's kit (`h2tune.deployment.kits`) and not a run directory."""
    return (folder / "kit.json").is_file()


def only_client(run: Path) -> str:
    """Whose adapter a folder holds, where it can be but one."""
    if is_kit(run):
        return Kit(run, "client").about.name
    names = [c.name for c in RunStore(run).open()[1].clients]
    if len(names) > 1:
        raise StoreError(f"{run} has several clients: choose with --client {' or --client '.join(names)}")
    return names[0]


def find_client(run: Path, name: str) -> ClientConfig:
    """The client's part of a run's (or its own kit's) config; raises StoreError naming the clients there are."""
    if is_kit(run):
        kit = Kit(run, "client")
        experiment = kit.experiment(kit.own())
    else:
        _, experiment = RunStore(run).open()
    for client in experiment.clients:
        if client.name == name:
            return client
    raise StoreError(f"{run} has no client {name!r}; it has {', '.join(c.name for c in experiment.clients)}.")


def load_client(run: Path, name: str) -> tuple[PeftModel, PreTrainedTokenizerBase, Task]:
    """Base model with the client's trained adapter, tokenizer and task."""
    client = find_client(run, name)
    folder = run / "state" / "adapter" if is_kit(run) else run / "clients" / name / "adapter"
    if not (folder / "adapter_model.safetensors").is_file():
        goes_on = "h2tune client" if is_kit(run) else "h2tune run --resume"
        raise StoreError(f"{run} has no finished adapter for {name}: let the run end first ({goes_on}).")
    task = tasks.build_task(client.task)
    source, common = (
        resolve_source(client.model),
        {"revision": client.revision, "trust_remote_code": client.trust_remote_code},
    )
    tokenizer = AutoTokenizer.from_pretrained(source, **common)
    options: dict[str, Any] = {"dtype": torch.float32}
    auto = AutoModelForCausalLM
    if task.kind == "classify":
        auto, options = AutoModelForSequenceClassification, options | {"num_labels": len(task.labels)}
    base = auto.from_pretrained(source, **options, **common)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    base.config.pad_token_id = tokenizer.pad_token_id
    if task.labels and task.kind == "classify":
        base.config.id2label = dict(enumerate(task.labels))
        base.config.label2id = {label: i for i, label in enumerate(task.labels)}
    return PeftModel.from_pretrained(base, folder).eval(), tokenizer, task


def export(run: Path, name: str, out: Path, to: str = "peft") -> Path:
    """Write a client's result as a standard LoRA (``peft``) or as a whole model (``merged``)."""
    if out.exists() and any(out.iterdir()):
        raise StoreError(f"{out} is not empty: choose another --out.")
    model, tokenizer, _ = load_client(run, name)
    if to == "merged":
        model.merge_and_unload(safe_merge=True).save_pretrained(out)
    else:
        model.peft_config["default"].base_model_name_or_path = find_client(run, name).model
        save_lora(model, out)
    tokenizer.save_pretrained(out)
    return out


def predict(run: Path, name: str, source: Path, batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """The rows of a file with the model's answer under ``prediction``."""
    model, tokenizer, task = load_client(run, name)
    client = find_client(run, name)
    rows = [row for row in read_rows(str(source)) if task.accepts(row)]
    examples = tasks.load_examples(str(source), task, columns=client.columns, answered=False)
    length = client.max_length or min(tokenizer.model_max_length, 1 << 16)
    for start in range(0, len(rows), batch_size):
        part = examples[start : start + batch_size]
        for row, answer in zip(rows[start:], _answers(model, tokenizer, task, part, length), strict=False):
            yield {**row, "prediction": answer}


def _answers(model: Any, tokenizer: Any, task: Task, examples: list[Example], length: int) -> list[str]:
    if task.kind == "classify":
        batch = collate(encode(examples, tokenizer, max_length=length, truncate=True), tokenizer.pad_token_id)
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return [task.labels[i] for i in logits.argmax(-1).tolist()]
    if task.kind == "choice":
        return [text.strip() for text in choose(model, tokenizer, examples)]
    room = max(1, length - task.max_new_tokens)
    prompts = encode_prompts(examples, tokenizer, max_length=room, truncate=True)
    return [text.strip() for text in generate(model, tokenizer, prompts, task.max_new_tokens)]


def to_jsonl(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False, default=str)
