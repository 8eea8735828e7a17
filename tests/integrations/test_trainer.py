"""Somebody else's trainer with our two phases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from h2tune.adapter import TriLoraConfig
from h2tune.core.client_core import ClientCore, CoreShape
from h2tune.core.relation import depth_relation
from h2tune.core.slots import layout_of
from h2tune.integrations.trainer import CORE, Alternation
from h2tune.utils.files import StoreError


class Snapshots(Alternation):
    """Records what each update moved."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.moved: list[tuple[bool, bool]] = []

    def on_step_begin(self, *args, **kwargs) -> None:
        super().on_step_begin(*args, **kwargs)
        self.before = self.core.S.detach().clone(), [p.detach().clone() for p in self.private]

    def on_step_end(self, *args, **kwargs) -> None:
        super().on_step_end(*args, **kwargs)
        assert torch.equal(self.leaves[0][0], self.core.middle()[0, 0])  # what is evaluated and saved from here on
        core = not torch.equal(self.before[0], self.core.S)
        private = any(not torch.equal(a, b) for a, b in zip(self.before[1], self.private, strict=True))
        self.moved.append((core, private))


def small_trainer(folder: Path, steps: int, **arguments) -> tuple[Trainer, Snapshots]:
    """A tiny Llama with a core under Hugging Face's trainer, the same every time."""
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
    usual = {"save_strategy": "no", "lr_scheduler_type": "constant", "logging_steps": 1}
    told = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True, **usual | arguments,
    )  # fmt: skip
    optimizers = (phases.optimizer(learning_rate=1e-2), None)
    data = {"train_dataset": rows, "eval_dataset": rows}
    return Trainer(model, told, callbacks=[phases], optimizers=optimizers, **data), phases


def test_hf_trainer_alternates_and_learns(tmp_path: Path) -> None:
    trainer, phases = small_trainer(tmp_path, 24)
    trainer.train()
    assert phases.moved == [(True, False), (False, True)] * 12
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.05
    assert torch.equal(phases.leaves[0][0], phases.core.middle()[0, 0])


@pytest.mark.parametrize("stop", [3, 4], ids=["after-shared", "after-specific"])
def test_resumed_training_goes_on_as_if_it_had_not_stopped(stop: int, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": stop}
    whole, phases = small_trainer(tmp_path, 6, **saving)
    whole.train()
    again, resumed = small_trainer(tmp_path, 6, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert phases.core.S.any() and len(resumed.moved) == 6 - stop
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(phases.core.parameters(), resumed.core.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_without_its_own_core_is_refused(tmp_path: Path) -> None:
    small_trainer(tmp_path, 4, save_strategy="steps", save_steps=2)[0].train()
    first, last = tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"
    (last / CORE).rename(tmp_path / CORE)
    again, _ = small_trainer(tmp_path, 6)
    with pytest.raises(StoreError, match=f"checkpoint-4 has no {CORE}"):
        again.train(resume_from_checkpoint=str(last))
    (last / CORE).write_bytes((first / CORE).read_bytes())
    with pytest.raises(StoreError, match="not the core of the adapter"):
        again.train(resume_from_checkpoint=str(last))
    moved = tmp_path / "elsewhere"
    last.rename(moved)
    (tmp_path / CORE).rename(moved / CORE)
    named, phases = small_trainer(tmp_path / "new", 5, resume_from_checkpoint=str(moved))
    named.train(resume_from_checkpoint=str(moved))
    assert len(phases.moved) == 1


def test_the_best_checkpoint_comes_back_with_its_core(tmp_path: Path) -> None:
    keeps = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    keeps |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer, phases = small_trainer(tmp_path, 6, **keeps)  # "best" is the worst: not the last one
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-6"
    assert torch.equal(phases.core.S, load_file(best / CORE)["S"])
    assert torch.equal(phases.leaves[0][0], phases.core.middle()[0, 0])


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
