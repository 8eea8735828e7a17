"""The pull of H2Tune's specific phase towards what the shared phase said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from h2tune.participant.batches import Batch
from h2tune.participant.optim import Penalty

if TYPE_CHECKING:
    from h2tune.methods.h2tune import H2TuneClient


def distillation(method: H2TuneClient) -> Penalty:
    """lambda KL(z_shared || z) over the asked positions, z_shared from A, B as the shared phase left them."""
    kept, weight = method.kept, method.settings.distill

    def penalty(batch: Batch, logits: Tensor) -> Tensor:
        now = [p.data for p in method.factors]
        for parameter, value in zip(method.factors, kept, strict=True):
            parameter.data = value
        with torch.no_grad():
            method.client.base.peft.eval()
            before = method.client.base.peft(**{k: v for k, v in batch.items() if k != "labels"}).logits
            method.client.base.peft.train()
        for parameter, value in zip(method.factors, now, strict=True):
            parameter.data = value
        if batch["labels"].ndim == 2:
            asked = batch["labels"][:, 1:] != -100
            before, logits = before[:, :-1][asked], logits[:, :-1][asked]
        return weight * kl_div(
            log_softmax(logits.float(), -1),
            log_softmax(before.float(), -1),
            log_target=True,
            reduction="batchmean",
        )

    return penalty
