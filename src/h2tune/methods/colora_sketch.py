"""Which clients' data are alike: a sketch of a small common model's gradient (FedMosaic, arXiv 2506.11024, RELA).

All clients run the same public model on their own examples; the gradient of its last block is projected to a few
numbers by random signs, the same for everyone. It is a function of private data, and a small one.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from h2tune.participant.batches import collate, scored_together, vocabulary
from h2tune.participant.context import ClientContext
from h2tune.participant.passes import PLAIN
from h2tune.tasks.prompts import encode

SKETCH, EXAMPLES = 256, 32


def gradient_sketch(context: ClientContext, common: str) -> Tensor:
    """The client's sketch, `SKETCH` numbers."""
    base = context.models.get(common)
    examples = [
        replace(e, answer=e.answer or f" {e.gold}", label=None) for e in context.data.train.examples[:EXAMPLES]
    ]
    rows = encode(examples, base.tokenizer, max_length=base.context, truncate=True)
    block = base.layout.blocks_of(base.model)[-1]
    weights = [p for name, p in sorted(block.named_parameters()) if p.ndim == 2 and "trilora_" not in name]
    for weight in weights:
        weight.requires_grad_(True)
    flat, asked = torch.zeros(sum(weight.numel() for weight in weights)), 0
    with base.peft.disable_adapter() if base.peft else nullcontext():
        for picked in scored_together(rows, EXAMPLES, vocabulary(base.model)):
            batch = collate([rows[i] for i in picked], base.tokenizer.pad_token_id)
            found = PLAIN.answered(base.model, {k: v.to(base.model.device) for k, v in batch.items()})
            gradients = torch.autograd.grad(found.losses.sum(), weights)
            flat += torch.cat([g.float().flatten().cpu() for g in gradients])
            asked += len(found.wanted)
    for weight in weights:
        weight.requires_grad_(False)
    flat /= asked
    generator = torch.Generator().manual_seed(0)
    # A count sketch: every entry goes to one bucket with a random sign.
    bucket = torch.randint(0, SKETCH, flat.shape, generator=generator)
    sign = torch.randint(0, 2, flat.shape, generator=generator) * 2 - 1
    return torch.zeros(SKETCH).index_add_(0, bucket, flat * sign)
