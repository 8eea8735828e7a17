"""The two phases inside somebody else's trainer: Hugging Face's `Trainer`, TRL's `SFTTrainer`.

model = get_peft_model(base, TriLoraConfig(residual=False, ...))
phases = Alternation(model, core, core_learning_rate=5e-3)
trainer = Trainer(model, ..., optimizers=(phases.optimizer(learning_rate=1e-3), None), callbacks=[phases])
trainer.train()
upload = pack_core(core.S, core.coverage, masked=False)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from h2tune.adapter import TriLoraLayer
from h2tune.core.client_core import ClientCore
from h2tune.utils.files import StoreError

CORE = "h2tune_core.safetensors"  # in a checkpoint, beside PEFT's adapter: S, P and M


class Alternation(TrainerCallback):
    """Alternates shared and specific updates by the trainer's global step, starting with a shared one.

    After every update the adapter is complete, for evaluation and for checkpoints. A checkpoint holds the core as well,
    and training that is resumed goes on from it; ``load_best_model_at_end`` brings the best checkpoint's core back.

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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start from what the core is, or was in the checkpoint that is resumed.

        Raises:
            StoreError: the checkpoint's core is not there, or does not fit.
        """
        if state.global_step > 0:
            named = args.resume_from_checkpoint
            own = _checkpoint(args, state)
            self._load(Path(named) if named and not (own / CORE).is_file() else own)
        self.core.write(self.leaves)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        shared = state.global_step % 2 == 0
        self.core.write(self.leaves)  # S may have been set from outside, by another callback
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

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """T is what S has become: evaluation and checkpoints come next."""
        self.core.write(self.leaves)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the core into the checkpoint: S, P and M do not follow from T."""
        if args.should_save:
            folder = _checkpoint(args, state)
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: t.cpu().contiguous() for name, t in self.core.state_dict().items()}, folder / CORE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the adapter complete and saveable: T holds what S became."""
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self._load(Path(state.best_model_checkpoint))
        self.core.write(self.leaves)
        for parameter in (*self.leaves, *self.private):
            parameter.requires_grad_(True)

    def _load(self, folder: Path) -> None:
        """Take the core from a checkpoint whose adapter is loaded."""
        if not (folder / CORE).is_file():
            raise StoreError(
                f"{folder} has no {CORE}, so the core would start from nothing again. Resume from a checkpoint that has"
                " it, in output_dir or named by TrainingArguments(resume_from_checkpoint=...), or start anew."
            )
        try:
            self.core.load_state_dict(load_file(folder / CORE))
        except RuntimeError:
            raise StoreError(
                f"{folder / CORE} is of a core of another shape: make the core as it was made then."
            ) from None
        held = [leaf.detach().clone() for leaf in self.leaves]
        self.core.write(self.leaves)
        # Another device may round otherwise; another checkpoint's core is further away.
        if not all(torch.allclose(t, leaf, rtol=1e-2, atol=1e-6) for t, leaf in zip(held, self.leaves, strict=True)):
            raise StoreError(
                f"{folder / CORE} is not the core of the adapter that was loaded. Name the checkpoint by"
                " TrainingArguments(resume_from_checkpoint=...), and keep its files together."
            )


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Where the trainer saves what it has now."""
    return Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
