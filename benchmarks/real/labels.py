"""Frames for labels, as an experiment: coordinate c is the c-th label, in whichever token a client's model has for it.

    B_l   effect on the logits of the client's own labels, against their mean       (as `h2tune.frames.effect` for words)
    A_l   regression on coordinates of the anchors' last positions, where an answer is given

Labels are matched by their order. Only for tasks that choose among labels which begin with different tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from h2tune.frames import bases
from h2tune.frames.anchor_text import AnchorBatch, anchor_batch
from h2tune.frames.effect import EFFECT, EffectClient, EffectKind, EffectServer
from h2tune.frames.predictions import Predictions
from h2tune.frames.registry import OWN


def last_positions(batch: AnchorBatch) -> AnchorBatch:
    """The same sentences with one row each, for their last token."""
    count, longest = batch.input_ids.shape
    last = torch.arange(count) * longest + batch.attention_mask.sum(1) - 1
    return AnchorBatch(batch.input_ids, batch.attention_mask, last, torch.arange(count), torch.ones(count), count)


class LabelClient(EffectClient):
    def introduction(self, fresh: bool) -> dict[str, Any]:
        context, base = self.context, self.context.base
        if fresh:
            key = (
                "last positions",
                self.settings.directions * context.rank,
                hash(tuple(context.anchors)),
                tuple(self.layout.targets),
            )
            if key not in base.cache:
                batch = last_positions(anchor_batch(context.anchors, context.tokenizer, base.context, base.causal))
                with base.untouched() as model:
                    base.cache[key] = bases.describe(
                        model, self.layout, batch, self.settings.directions * context.rank
                    )
        said = super().introduction(fresh)
        if fresh:
            self.described = base.cache[key]
            said["digest"] = self.described.digest
        return said

    def effects(self, predictions: Predictions, common: Tensor, shared: Tensor) -> list[Tensor]:
        weight = self.context.base.model.get_output_embeddings().weight.detach()
        tokens = [self._token(option) for option in self.context.data.train.examples[0].options]
        rows = weight[torch.tensor(tokens)].float()
        matrix = torch.zeros(common.shape[1], rows.shape[1])
        matrix[: len(rows)] = rows - rows.mean(0)
        return predictions.moved(self.layout, matrix)

    def _token(self, option: str) -> int:
        ids: Sequence[int] = self.context.tokenizer(option, add_special_tokens=False)["input_ids"]
        return next(token for token in ids if token in self.context.telling)


OWN["labels"] = EffectKind(
    "labels", "effect on the client's own labels", LabelClient, EffectServer, reads_anchors=True, suited=EFFECT.suited
)
