"""The two phases inside somebody else's trainer: Hugging Face's `Trainer`, TRL's `SFTTrainer`.

model = get_peft_model(base, TriLoraConfig(residual=False, ...))
phases = Alternation(model, core, core_learning_rate=5e-3)
trainer = Trainer(model, ..., optimizers=(phases.optimizer(learning_rate=1e-3), None), callbacks=[phases])
trainer.train()
upload = pack_core(core.S, core.coverage, masked=False)
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from h2tune.adapter import TriLoraLayer
from h2tune.core.client_core import ClientCore


class Alternation(TrainerCallback):
    """Alternates shared and specific updates by the trainer's global step, starting with a shared one.

    Args:
        model: a PEFT model with a TriLoRA adapter without residual, on all maps of ``core.layout``.
        core: the client's hold on the shared core; its S is what to send after training.
        core_learning_rate: for S, P and M.
        adapter: name of the adapter.
    """

    def __init__(
        self, model: PeftModel, core: ClientCore, core_learning_rate: float = 5e-3, adapter: str = "default"
    ) -> None:
        base = model.get_base_model()
        layers = [base.get_submodule(name) for name in core.layout.targets]
        self.core, self.core_learning_rate = core, core_learning_rate
        if strange := [layer for layer in layers if not isinstance(layer, TriLoraLayer)]:
            raise TypeError(f"{core.layout.blocks} has a {type(strange[0]).__name__} without a TriLoRA adapter.")
        self.leaves = [layer.trilora_T[adapter] for layer in layers if isinstance(layer, TriLoraLayer)]
        held = {id(leaf) for leaf in self.leaves}
        self.private: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad and id(p) not in held]
        core.to(self.leaves[0].device)
        core.write(self.leaves)

    def optimizer(self, learning_rate: float = 1e-3) -> torch.optim.Optimizer:
        """AdamW over the private parameters and the core; give it to the trainer as ``optimizers=(this, None)``."""
        shared = {"params": list(self.core.parameters()), "lr": self.core_learning_rate}
        private = {"params": self.private, "lr": learning_rate}
        return torch.optim.AdamW([private, shared], weight_decay=0.0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        shared = state.global_step % 2 == 0
        self.core.write(self.leaves)
        for leaf in self.leaves:
            leaf.requires_grad_(shared)
        for parameter in self.private:
            # Parameters without a gradient are skipped by the optimiser, moments and all.
            parameter.requires_grad_(not shared)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % 2 == 0:
            self.core.pull(self.leaves)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for parameter in (*self.core.parameters(), *self.private):
            parameter.grad = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the adapter complete and saveable: T holds what S became."""
        self.core.write(self.leaves)
        for parameter in (*self.leaves, *self.private):
            parameter.requires_grad_(True)
