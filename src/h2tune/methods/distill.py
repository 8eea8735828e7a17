"""The pull of H2Tune's specific phase towards what the shared phase said."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from h2tune.participant.adapter_trainer import AdapterTrainer
from h2tune.participant.batches import Batch


class Distillation:
    """lambda KL(z_shared || z) over the asked positions, z_shared from A, B as the shared phase left them."""

    def __init__(self, adapter: AdapterTrainer, weight: float) -> None:
        self.adapter, self.weight = adapter, weight
        self.remember()

    def remember(self) -> None:
        """Take A and B as they stand; called with every shared update, which leaves them alone."""
        self.kept = [p.detach().clone() for p in self.adapter.factors]

    def __call__(self, batch: Batch, logits: Tensor) -> Tensor:
        before = log_softmax(self._shared_logits(batch), -1)
        return self.weight * kl_div(log_softmax(logits, -1), before, log_target=True, reduction="batchmean")

    @torch.no_grad()
    def _shared_logits(self, batch: Batch) -> Tensor:
        adapter = self.adapter
        model = adapter.context.base.activate(adapter.context.adapter)
        now = [p.data for p in adapter.factors]
        for parameter, value in zip(adapter.factors, self.kept, strict=True):
            parameter.data = value
        model.eval()
        logits = adapter.context.passes.answered(model, batch).logits
        model.train()
        for parameter, value in zip(adapter.factors, now, strict=True):
            parameter.data = value
        return logits
