"""One optimiser update of one group of parameters, on Accelerate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from transformers import get_scheduler

from h2tune.config import Training
from h2tune.participant.batches import Batch


class NanLossError(RuntimeError):
    """The loss is not a number; the client stops and keeps its last good state."""


Penalty = Callable[[Batch, Tensor], Tensor]


class Group:
    """Parameters that are trained together: one optimiser, one schedule."""

    def __init__(
        self, parameters: list[nn.Parameter], rate: float, updates: int, settings: Training, accelerator: Accelerator
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        fused = all(p.device.type in ("cpu", "cuda") for p in self.parameters)
        optimiser = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=0.0, fused=fused)
        self.optimiser = accelerator.prepare_optimizer(optimiser)
        warmup = math.ceil(settings.warmup * updates)
        self.scheduler = get_scheduler(settings.schedule, self.optimiser, warmup, max(updates, warmup + 1))

    def trainable(self, flag: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(flag)

    def forget(self) -> None:
        """Drop the moments: the parameters mean something new. The schedule goes on."""
        self.optimiser.state.clear()

    def state(self) -> dict[str, Tensor]:
        """The optimiser's and the schedule's state as plain tensors."""
        flat = {"updates": torch.tensor(self.scheduler.last_epoch)}
        for index, values in self.optimiser.state_dict()["state"].items():
            flat |= {f"{index}.{name}": torch.as_tensor(value).clone() for name, value in values.items()}
        return flat

    def load_state(self, flat: dict[str, Tensor]) -> None:
        whole = self.optimiser.state_dict()
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in flat.items():
            if "." in key:
                index, name = key.split(".")
                states.setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict({"state": states, "param_groups": whole["param_groups"]})
        # The schedule is a function of the number of updates alone.
        self.scheduler.last_epoch = int(flat["updates"])
        for group, base, shape in zip(
            self.optimiser.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * shape(self.scheduler.last_epoch)


class Updater:
    """Makes updates of a model's groups on a stream of batches."""

    def __init__(self, model: PeftModel, settings: Training, accelerator: Accelerator) -> None:
        self.model, self.settings, self.accelerator = model, settings, accelerator

    def gradients(self, batches: Iterator[tuple[Batch, list[int]]], penalty: Penalty | None = None) -> float:
        """Accumulate gradients of the mean loss over `accumulation` batches; returns that loss.

        Raises:
            NanLossError: naming the batch's rows.
        """
        total = 0.0
        for _ in range(self.settings.accumulation):
            batch, rows = next(batches)
            batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
            with self.accelerator.autocast():
                out = self.model(**batch)
                loss = out.loss if penalty is None else out.loss + penalty(batch, out.logits)
            if not torch.isfinite(loss):
                raise NanLossError(f"the loss is not a number on the training rows {rows[:8]}")
            self.accelerator.backward(loss / self.settings.accumulation)
            total += float(loss.detach()) / self.settings.accumulation
        return total

    def apply(self, group: Group) -> None:
        """Clip and step one group, and clear its gradients."""
        self.accelerator.clip_grad_norm_(group.parameters, self.settings.clip)
        group.optimiser.step()
        group.scheduler.step()
        group.optimiser.zero_grad()
