"""Differential privacy of single training rows inside a client: clipped gradients, noise, and an account of its own.

    g <- (sum_i g_i min(1, clip / |g_i|) + N(0, (noise clip)^2)) / batch

(Abadi et al. 2016, arXiv 1607.00133, algorithm 1.) g_i is the gradient of row i over everything that the pass trains: A, B,
T and a head. What follows from g (the gradients of S and P, optimisers, the update that is sent) is computed from g alone.
Each row is passed by itself, so a batch costs as many passes as it has rows.

Two data sets are neighbours if they differ in one row: its gradients, or zeros. A row is in one batch of an epoch, in an
order that its content does not change. So of all updates only those that the row is in count, each as one Gaussian
mechanism of multiplier ``noise``; no privacy is gained by sampling. `RowLedger` counts them for every row and adds them up.

Noise comes from the operating system, never from a run's seed: a round that is trained again draws anew, and counts again.

With a budget (``epsilon``) no update is made that would exceed it. Where ``noise`` is not said, it is the smallest with which
all rounds, and one of them once more, stay within the budget.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from h2tune.aggregation.private import INSTALL, Source, epsilon, has_accountant, standard_normal
from h2tune.config import RowPrivacy
from h2tune.config.schema import Training
from h2tune.errors import ClientError, MethodError
from h2tune.participant.batches import Batch
from h2tune.participant.passes import PLAIN, Passes
from h2tune.participant.trainer import Batches, LocalTraining, Loss, OnStep, Trainer, answer_loss
from h2tune.store import ClientStore

FILE = "row_privacy.json"


class RowBudgetError(ClientError):
    """The privacy budget of a client's rows is spent."""


def updates_of_a_row(settings: Training, rows: int, rounds: int, head: bool) -> int:
    """The most updates that any one row is in: a round begins a new order of the rows, and an epoch has each of them once.

    Args:
        rows: number of training rows. head: whether a new head is trained before the first round.
    """
    batches = math.ceil(rows / settings.batch_size)  # of an epoch
    most = [settings.steps] * rounds + [settings.head_steps] * head
    return sum(min(steps, math.ceil(steps * settings.accumulation / batches)) for steps in most)


def noise_within(budget: float, delta: float, updates: int) -> float:
    """The smallest noise multiplier, in steps of a hundredth, with which so many updates of a row spend no more than ``budget``."""
    low, high = 0, 1  # in hundredths; the first is too little
    while epsilon([high / 100] * updates, delta) > budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if epsilon([middle / 100] * updates, delta) <= budget else (middle, high)
    return high / 100


def settled(privacy: RowPrivacy, settings: Training, rows: int, rounds: int, head: bool) -> RowPrivacy:
    """The settings with the noise that their budget asks for."""
    if privacy.noise is not None:
        return privacy
    assert privacy.epsilon is not None  # one of the two is said
    updates = updates_of_a_row(settings, rows, rounds + 1, head)
    return privacy.model_copy(update={"noise": noise_within(privacy.epsilon, privacy.delta, updates)})


def promise_in_words(privacy: RowPrivacy, settings: Training, rows: int, rounds: int, head: bool) -> str:
    """What row privacy will spend, before anything is trained."""
    if not has_accountant():
        return f"row privacy {INSTALL}"
    known, most = settled(privacy, settings, rows, rounds, head), updates_of_a_row(settings, rows, rounds, head)
    noise, budget = multiplier(known), privacy.epsilon
    spent = epsilon([noise] * most, privacy.delta)
    within = "" if budget is None else f" of a budget of {budget:g}"
    if budget is not None and spent > budget:
        within = f", more than the budget of {budget:g}: training ends early, so use more noise or fewer rounds"
    return (
        f"row privacy: each of {rows:,} training rows is in at most {most} updates; noise {noise:g} makes epsilon"
        f" {spent:.2f} at delta {privacy.delta:g}{within}"
    )


def multiplier(privacy: RowPrivacy) -> float:
    """The noise multiplier of settings that are `settled`."""
    assert privacy.noise is not None
    return privacy.noise


def digest_of(rows: Sequence[Any]) -> str:
    """Of training rows in their order: of the text of a list of them, which would take as much memory as they do."""
    digest = hashlib.sha256(b"[")
    for number, row in enumerate(rows):
        digest.update(f"{', ' if number else ''}{row!r}".encode())
    digest.update(b"]")
    return digest.hexdigest()[:32]


class RowLedger:
    """How many updates each training row was in, by their noise, and what that spends; kept over a restart.

    Where the rows are others than those of the account, each has spent as much as any of them: which are old is not known.

    Args:
        privacy: `settled`.
        rows: number of training rows.
        store: where the account is kept; None keeps it in memory.
        data: digest of the rows in their order; it stays on this machine.
    """

    def __init__(self, privacy: RowPrivacy, rows: int, store: ClientStore | None, data: str = "") -> None:
        self.privacy, self.store, self.data = privacy, store, data
        found = (store.read_json(FILE) or {}) if store else {}
        known = found.get("by_noise", {})
        if not known and found.get("updates"):  # of an earlier version, which knew one noise
            known = {str(multiplier(privacy)): found["updates"]}
        same = found.get("data", data) == data
        self.counts: dict[str, list[int]] = {
            noise: list(c) if same and len(c) == rows else [max(c, default=0)] * rows for noise, c in known.items()
        }
        self.counts.setdefault(str(multiplier(privacy)), [0] * rows)

    @property
    def updates(self) -> list[int]:
        """Of each row, whatever their noise was."""
        return [sum(row) for row in zip(*self.counts.values(), strict=True)]

    @property
    def begun(self) -> bool:
        """Whether any row was in an update."""
        return any(count for counts in self.counts.values() for count in counts)

    def count(self, rows: Sequence[int]) -> None:
        """Enter one update that these rows are in.

        Raises:
            RowBudgetError: it would exceed the budget; nothing is entered.
        """
        counts = self.counts[str(multiplier(self.privacy))]
        for row in rows:
            counts[row] += 1
        if self.privacy.epsilon is not None and self._spent(rows) > self.privacy.epsilon:
            for row in rows:
                counts[row] -= 1
            raise RowBudgetError("row_privacy: its privacy budget is spent, and this client trains no more")

    def _spent(self, rows: Iterable[int]) -> float:
        """Of the row among these that has spent most."""
        noises = [float(noise) for noise in self.counts]
        cases = {tuple(counts[row] for counts in self.counts.values()) for row in rows}
        spent = (
            epsilon([n for n, c in zip(noises, case, strict=True) for _ in range(c)], self.privacy.delta)
            for case in cases
        )
        return max(spent, default=0.0)

    @property
    def epsilon(self) -> float:
        """Of the row that has spent most."""
        return self._spent(range(len(self.updates)))

    def keep(self) -> None:
        if self.store:
            account: dict[str, Any] = {
                "data": self.data,
                "epsilon": self.epsilon,
                "delta": self.privacy.delta,
                "budget": self.privacy.epsilon,
            }
            self.store.write_json(FILE, account | {"updates": self.updates, "by_noise": self.counts})


def alone(batch: Batch, place: int) -> Batch:
    """A row of a right-padded batch, without the padding: its gradient must not depend on how long the others are."""
    row = {name: values[place : place + 1] for name, values in batch.items()}
    if "attention_mask" not in row:
        return row
    padded, length = row["attention_mask"].shape[1], int(row["attention_mask"].sum())
    return {name: v[:, :length] if v.ndim > 1 and v.shape[1] == padded else v for name, v in row.items()}


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

        A row that several batches of this update hold counts once: the noise is made for one clipped gradient of each. A row
        whose loss or gradient is not a number counts as nothing, since an error would tell of it without noise.
        """
        parameters = [p for p in model.parameters() if p.requires_grad]
        drawn: dict[int, dict[str, Tensor]] = {}
        for _ in range(self.settings.accumulation):
            batch, rows = next(batches)
            drawn |= {row: alone(batch, place) for place, row in enumerate(rows)}
        self.ledger.count(list(drawn))
        sums: dict[int, Tensor] = {}
        total, count = 0.0, len(drawn)
        for row, inputs in drawn.items():
            one = {name: v.to(self.accelerator.device) for name, v in inputs.items()}
            forward = partial(self.forward, model, rows=[row], passes=passes)
            total += self._add(parameters, sums, partial(loss, forward, one), row)
        for index, found in sums.items():
            noise = multiplier(self.privacy) * self.privacy.clip * standard_normal(found.shape, self.source)
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
        self.accelerator.backward(value)
        found = {i: p.grad.double() for i, p in enumerate(parameters) if p.grad is not None}
        length = float(torch.stack([g.norm() for g in found.values()]).norm()) if found else 0.0
        counts = bool(torch.isfinite(value)) and math.isfinite(length)
        if not counts:
            warnings.warn(
                f"row_privacy: the loss of training row {row} is not a number; it counts as nothing", stacklevel=2
            )
        for i, gradient in found.items():
            clipped = (
                gradient * min(1.0, self.privacy.clip / max(length, 1e-12)) if counts else torch.zeros_like(gradient)
            )
            sums[i] = sums[i] + clipped if i in sums else clipped
        return float(value.detach()) if counts else 0.0


def trainer_of(
    privacy: RowPrivacy | None,
    settings: Training,
    accelerator: Accelerator,
    rows: Sequence[Any],
    store: ClientStore | None,
    rounds: int = 1,
    head: bool = False,
) -> Trainer:
    """The trainer that a client's settings ask for.

    Args:
        rows: the training rows, in their order. rounds, head: as in `updates_of_a_row`.
    """
    if privacy is None:
        return Trainer(settings, accelerator)
    if not has_accountant():
        raise MethodError(f"row_privacy: {INSTALL}")
    privacy = settled(privacy, settings, len(rows), rounds, head)
    ledger = RowLedger(privacy, len(rows), store, digest_of(rows))
    return RowPrivateTrainer(settings, accelerator, privacy, ledger)
