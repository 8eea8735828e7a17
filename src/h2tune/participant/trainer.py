"""Local training: a method declares it, a trainer carries it out.

A method says which parameters are trained together, in which order, on which batches, with which loss and what has to
happen around a backward pass (`LocalTraining`). How the passes are made is the trainer's: another trainer may run many
clients in one pass, or start from hidden states that are known already, without a method knowing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from h2tune.config import Training
from h2tune.errors import ClientError
from h2tune.participant.batches import Batch
from h2tune.participant.passes import PLAIN, Answered, Passes, answers

Batches = Iterator[tuple[Batch, list[int]]]
"""Batches with the numbers of their rows in the training data."""
Forward = Callable[[Batch], Any]
"""A pass of the client's model: what it says where answers are read (`Answered`); its own output without labels."""
Loss = Callable[[Forward, Batch], Tensor]
"""The loss on a batch, in as many passes as it needs."""
Penalty = Callable[[Batch, Tensor], Tensor]
"""An addition to the loss, from a batch and its logits where answers are read."""
OnStep = Callable[[str, int, int, float], None]
"""Called with phase, step, number of steps and loss after every update."""


class NanLossError(ClientError):
    """The loss is not a number; the client stops and keeps its last good state."""


def answer_loss(forward: Forward, batch: Batch) -> Tensor:
    """Mean cross-entropy over the answer tokens of a batch, or over its rows for classes."""
    out: Answered = forward(batch)
    return out.loss


def with_penalty(penalty: Penalty | None) -> Loss:
    """`answer_loss` plus a penalty."""
    if penalty is None:
        return answer_loss

    def loss(forward: Forward, batch: Batch) -> Tensor:
        out: Answered = forward(batch)
        return out.loss + penalty(batch, out.logits)

    return loss


def among(tokens: Sequence[int]) -> Loss:
    """Mean cross-entropy of the choice among some tokens, where a batch asks for one; `answer_loss` without any."""
    if not tokens:
        return answer_loss

    def loss(forward: Forward, batch: Batch) -> Tensor:
        out: Answered = forward(batch)
        return out.among(tokens).loss

    return loss


class NormalisedGradient(torch.optim.Optimizer):
    """Steps of a fixed length along the gradient, with momentum: m <- momentum m + g / |g|, x <- x - rate m.

    AdamW gives every entry the same step, and so fills a shared tensor with what means something at home only. The norm
    is taken for each index of the first dimension by itself (of a core: each depth).
    """

    def __init__(self, parameters: Any, lr: float, momentum: float = 0.5) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # PyTorch's own steps may be given a closure; nobody gives one here
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                size = p.grad.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (p.ndim - 1))
                held = self.state[p].setdefault("momentum", torch.zeros_like(p))
                held.mul_(group["momentum"]).add_(p.grad / size)
                p.add_(held, alpha=-group["lr"])


class Group:
    """Parameters that are trained together: one optimiser (AdamW), one schedule.

    Args:
        updates: how many the schedule is for.
        rule: ``adamw``, or ``gradient`` for steps of a fixed length along the gradient.
        decayed: parameters that ``training.weight_decay`` pulls towards 0; the others have none.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        rate: float,
        updates: int,
        settings: Training,
        decayed: Sequence[nn.Parameter] = (),
        rule: str = "adamw",
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.optimiser: torch.optim.Optimizer
        warmup = math.ceil(settings.warmup * updates)
        if rule == "gradient":
            self.optimiser = NormalisedGradient(self.parameters, lr=rate)
            warmup = 0  # a step has a fixed length: there are no moments to wait for, and the updates are few
        else:
            self.optimiser = self._adamw(rate, settings, decayed)
        self.scheduler = get_scheduler(settings.schedule, self.optimiser, warmup, max(updates, warmup + 1))

    def _adamw(self, rate: float, settings: Training, decayed: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        fused = all(p.device.type in ("cpu", "cuda") for p in self.parameters)
        held = {id(p) for p in decayed} if settings.weight_decay else set()
        parts = [
            {"params": [p for p in self.parameters if (id(p) in held) is decays], "weight_decay": decay}
            for decays, decay in ((False, 0.0), (True, settings.weight_decay))
        ]
        return torch.optim.AdamW([part for part in parts if part["params"]], lr=rate, fused=fused)

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


def nothing() -> None:
    """Nothing has to happen."""


@dataclass(frozen=True)
class Update:
    """One kind of update.

    Attributes:
        groups: what is stepped, all from one backward pass.
        loss: what is minimised.
        before: called before the passes: lets gradients flow to what is trained, writes T from S.
        after: called between the backward pass and the step: carries the gradients of T back to S.
    """

    groups: Sequence[Group]
    loss: Loss = answer_loss
    before: Callable[[], None] = nothing
    after: Callable[[], None] = nothing


@dataclass(frozen=True)
class LocalTraining:
    """A client's updates of one round, or of one part of it.

    Attributes:
        model: the model with the client's adapter active.
        phases: the kind of each update, in order. updates: what each kind is.
        batches: endless. passes: how the model is run; the participant says it (`ClientContext.train`).
    """

    model: nn.Module
    phases: Sequence[str]
    updates: Mapping[str, Update]
    batches: Batches
    passes: Passes = PLAIN

    @classmethod
    def of_one_kind(cls, model: nn.Module, phase: str, steps: int, update: Update, batches: Batches) -> LocalTraining:
        return cls(model, [phase] * steps, {phase: update}, batches)


class Trainer:
    """Carries out local training, one update after the other, on Accelerate."""

    def __init__(self, settings: Training, accelerator: Accelerator) -> None:
        self.settings, self.accelerator = settings, accelerator

    def run(self, training: LocalTraining, on_step: OnStep | None = None) -> dict[str, float]:
        """Make all updates; returns the mean loss of each phase."""
        losses: dict[str, list[float]] = {}
        for number, phase in enumerate(training.phases, 1):
            loss = self.update(training, training.updates[phase])
            losses.setdefault(phase, []).append(loss)
            if on_step:
                on_step(phase, number, len(training.phases), loss)
        return {phase: sum(values) / len(values) for phase, values in losses.items()}

    def scoring(self, model: nn.Module, passes: Passes) -> Passes:
        """How the client's model, with its adapter active, is run when it is scored: as it always is."""
        return passes

    def update(self, training: LocalTraining, update: Update) -> float:
        """One update; returns its loss."""
        update.before()
        loss = self.gradients(training.model, training.batches, update.loss, training.passes)
        update.after()
        self.apply(update.groups)
        return loss

    def gradients(self, model: nn.Module, batches: Batches, loss: Loss = answer_loss, passes: Passes = PLAIN) -> float:
        """Accumulate the gradients of the mean loss over the answers of `accumulation` batches; returns that loss.

        The mean is over all answer tokens of the batches together: how an update is cut into batches changes nothing.

        Raises:
            NanLossError: naming the batch's rows.
        """
        taken = [next(batches) for _ in range(self.settings.accumulation)]
        counts = [answers(batch) for batch, _ in taken] if len(taken) > 1 else [1]
        whole, total = max(1, sum(counts)), 0.0
        for (batch, rows), count in zip(taken, counts, strict=True):
            batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
            with self.accelerator.autocast():
                value = loss(partial(self.forward, model, rows=rows, passes=passes), batch)
            if not torch.isfinite(value):
                raise NanLossError(f"the loss is not a number on the training rows {rows[:8]}")
            share = value if count == whole else value * (count / whole)
            self.accelerator.backward(share)
            total += float(share.detach())
        return total

    def forward(self, model: nn.Module, batch: Batch, rows: list[int], passes: Passes) -> Any:
        """One pass of a model over a batch; ``rows`` are its rows' numbers in the training data."""
        return passes.answered(model, batch) if "labels" in batch else passes.whole(model, batch)

    def apply(self, groups: Sequence[Group]) -> None:
        """Clip and step the groups, each by its own norm, and clear their gradients."""
        # In half precision gradients are scaled. Each group's are scaled back once, and the scale changes when all have
        # been stepped: Accelerate's own optimisers would scale the second group of an update back twice.
        scaler = self.accelerator.scaler
        for group in groups:
            if scaler is not None:
                scaler.unscale_(group.optimiser)
            nn.utils.clip_grad_norm_(group.parameters, self.settings.clip)
        for group in groups:
            if scaler is None:
                group.optimiser.step()
            else:
                scaler.step(group.optimiser)
            group.scheduler.step()
            group.optimiser.zero_grad()
        if scaler is not None:
            scaler.update()
