"""Differential privacy of single training rows inside a client: clipped gradients, noise, and an account of its own.

    g <- (sum_i g_i min(1, clip / |g_i|) + N(0, (noise clip)^2)) / batch

(Abadi et al. 2016, arXiv 1607.00133, algorithm 1.) g_i is the gradient of row i over everything that the pass trains: A, B,
T and a head. What follows from g (the gradients of S and P, optimisers, the update that is sent) is computed from g alone.
Each row is passed by itself, so a batch costs as many passes as it has rows.

Two data sets are neighbours if they differ in one row: its gradients, or zeros. A row is in one batch of an epoch, in an
order that its content does not change. So of all updates only those that the row is in count, each as one Gaussian
mechanism of multiplier ``noise``; no privacy is gained by sampling. `RowLedger` counts them for every row and adds them up.

Noise comes from the operating system, never from a run's seed: a round that is trained again draws anew, and counts again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from h2tune.aggregation.private import INSTALL, Source, epsilon, has_accountant, standard_normal
from h2tune.config import RowPrivacy
from h2tune.config.schema import Training
from h2tune.errors import MethodError
from h2tune.participant.passes import PLAIN, Passes
from h2tune.participant.trainer import Batches, LocalTraining, Loss, NanLossError, OnStep, Trainer, answer_loss
from h2tune.store import ClientStore

FILE = "row_privacy.json"


class RowLedger:
    """How many updates each training row was in, and what that spends; kept over a restart.

    Args:
        rows: number of training rows.
        store: where the account is kept; None keeps it in memory.
    """

    def __init__(self, privacy: RowPrivacy, rows: int, store: ClientStore | None) -> None:
        self.privacy, self.store = privacy, store
        known = (store.read_json(FILE) or {}).get("updates", []) if store else []
        self.updates = known if len(known) == rows else [0] * rows

    def count(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.updates[row] += 1

    @property
    def epsilon(self) -> float:
        """Of the row that was in most updates."""
        return epsilon([self.privacy.noise] * max(self.updates, default=0), self.privacy.delta)

    def keep(self) -> None:
        if self.store:
            account = {"epsilon": self.epsilon, "delta": self.privacy.delta, "updates": self.updates}
            self.store.write_json(FILE, account)


class RowPrivateTrainer(Trainer):
    """Carries out local training with the gradient of every row clipped, and noise on their sum.

    Losses are not returned: they say something of the rows, and are sent to the server.

    Args:
        source: of the noise; only tests pass another one.
    """

    def __init__(
        self,
        settings: Training,
        accelerator: Accelerator,
        privacy: RowPrivacy,
        ledger: RowLedger,
        source: Source = os.urandom,
    ) -> None:
        super().__init__(settings, accelerator)
        self.privacy, self.ledger, self.source = privacy, ledger, source
        if not has_accountant():
            raise MethodError(f"row_privacy: {INSTALL}")
        if settings.precision == "fp16":
            raise MethodError("row_privacy: not with `training.precision: fp16`, whose gradients are scaled: use bf16")

    def run(self, training: LocalTraining, on_step: OnStep | None = None) -> dict[str, float]:
        try:
            super().run(training, on_step)
        finally:
            self.ledger.keep()
        return {}

    def gradients(self, model: nn.Module, batches: Batches, loss: Loss = answer_loss, passes: Passes = PLAIN) -> float:
        """Clip, sum and noise the gradients of single rows; returns the mean of their losses.

        Raises:
            NanLossError: naming the row.
        """
        parameters = [p for p in model.parameters() if p.requires_grad]
        sums: dict[int, Tensor] = {}
        total, count = 0.0, 0
        for _ in range(self.settings.accumulation):
            batch, rows = next(batches)
            self.ledger.count(rows)
            for place, row in enumerate(rows):
                one = {name: v[place : place + 1].to(self.accelerator.device) for name, v in batch.items()}
                forward = partial(self.forward, model, rows=[row], passes=passes)
                total += self._add(parameters, sums, partial(loss, forward, one), row)
                count += 1
        for index, found in sums.items():
            noise = self.privacy.noise * self.privacy.clip * standard_normal(found.shape, self.source)
            parameters[index].grad = ((found + noise.to(found.device)) / count).to(parameters[index].dtype)
        return total / count

    def _add(
        self, parameters: list[nn.Parameter], sums: dict[int, Tensor], loss: Callable[[], Tensor], row: int
    ) -> float:
        """Add one row's clipped gradient to the sums; returns its loss."""
        for parameter in parameters:
            parameter.grad = None
        with self.accelerator.autocast():
            value = loss()
        if not torch.isfinite(value):
            raise NanLossError(f"the loss is not a number on the training row {row}")
        self.accelerator.backward(value)
        found = {i: p.grad.double() for i, p in enumerate(parameters) if p.grad is not None}
        length = float(torch.stack([g.norm() for g in found.values()]).norm()) if found else 0.0
        for i, gradient in found.items():
            clipped = gradient * min(1.0, self.privacy.clip / max(length, 1e-12))
            sums[i] = sums[i] + clipped if i in sums else clipped
        return float(value.detach())


def trainer_of(
    privacy: RowPrivacy | None, settings: Training, accelerator: Accelerator, rows: int, store: ClientStore | None
) -> Trainer:
    """The trainer that a client's settings ask for."""
    if privacy is None:
        return Trainer(settings, accelerator)
    return RowPrivateTrainer(settings, accelerator, privacy, RowLedger(privacy, rows, store))
