"""Somebody else's trainer with our two phases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from h2tune.adapter import TriLoraConfig
from h2tune.core.client_core import ClientCore, CoreShape
from h2tune.core.relation import depth_relation
from h2tune.core.slots import layout_of
from h2tune.integrations.trainer import Alternation


class Snapshots(Alternation):
    """Records what each update moved."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.moved: list[tuple[bool, bool]] = []

    def on_step_begin(self, *args, **kwargs) -> None:
        super().on_step_begin(*args, **kwargs)
        self.before = self.core.S.detach().clone(), [p.detach().clone() for p in self.private]

    def on_step_end(self, args, state, control, **kwargs) -> None:
        core = not torch.equal(self.before[0], self.core.S)
        private = any(not torch.equal(a, b) for a, b in zip(self.before[1], self.private, strict=True))
        self.moved.append((core, private))


def test_hf_trainer_alternates_and_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0
    )
    base = LlamaForCausalLM(config)
    layout = layout_of(base)
    core = ClientCore(CoreShape(4, 8), layout, depth_relation(4, 3))
    model = get_peft_model(base, TriLoraConfig(r=8, residual=False, target_modules=layout.targets))
    phases = Snapshots(model, core, core_learning_rate=2e-2)
    rows = [{"input_ids": (row := torch.randint(1, 32, (12,))), "labels": row} for _ in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=24, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    optimizers = (phases.optimizer(learning_rate=1e-2), None)
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[phases], optimizers=optimizers)
    trainer.train()
    assert phases.moved == [(True, False), (False, True)] * 12
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.05
    assert torch.equal(phases.leaves[0][0], core.middle()[0, 0])


def test_trl_sft_trainer_keeps_its_own_ways(tmp_path: Path) -> None:
    """Prompt and completion columns, TRL's own collation and loss; the callback only alternates."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from h2tune.tasks.demo_problems import demo_rows
    from h2tune.zoo import zoo_folder

    folder = zoo_folder("llama")
    base, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    layout = layout_of(base)
    model = get_peft_model(
        base, TriLoraConfig(r=8, residual=False, target_modules=layout.targets, parts=layout.parts or None)
    )
    core = ClientCore(CoreShape(5, 8), layout, depth_relation(5, layout.depth))
    phases = Snapshots(model, core, core_learning_rate=5e-3)
    rows = [{"prompt": r["prompt"], "completion": f" {r['answer']}"} for r in demo_rows("train", "fill", 16, 0)]
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=8, report_to=[], use_cpu=True, logging_steps=1,
        save_strategy="no", disable_tqdm=True, bf16=False,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[phases],
        optimizers=(phases.optimizer(learning_rate=1e-3), None),
    )  # fmt: skip
    trainer.train()
    assert phases.moved == [(True, False), (False, True)] * 4
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
