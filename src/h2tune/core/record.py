"""What a model's blocks read and write on the anchors, one block at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from h2tune.adapter.layer import Rows
from h2tune.core.anchors import AnchorBatch
from h2tune.core.slots import Layout

OnBlock = Callable[[int, dict[str, Tensor], dict[str, Tensor]], None]


@torch.no_grad()
def record(model: PreTrainedModel, layout: Layout, batch: AnchorBatch, on_block: OnBlock) -> None:
    """Run the anchors through the model once and hand over each block's rows as soon as the block has run.

    Args:
        model: the base model; adapters, if any, must be off.
        on_block: called with block index, inputs by slot (n x d_in; one for each distinct input) and outputs by slot
            (n x d_out). Nothing is kept after it returns, so memory stays that of one block.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    backbone = model.base_model if hasattr(model, "base_model") else model
    device = next(model.parameters()).device
    with ExitStack() as stack:
        for index, block in enumerate(model.get_submodule(layout.blocks)):
            _hook_block(stack, block, layout, batch, inputs, outputs)

            def done(*_: object, index: int = index) -> None:
                on_block(index, inputs, outputs)
                inputs.clear()
                outputs.clear()

            stack.callback(block.register_forward_hook(done).remove)
        training = model.training
        model.eval()
        kwargs = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
        backbone(input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), **kwargs)
        model.train(training)


def _hook_block(
    stack: ExitStack,
    block: nn.Module,
    layout: Layout,
    batch: AnchorBatch,
    inputs: dict[str, Tensor],
    outputs: dict[str, Tensor],
) -> None:
    for name in layout.modules:
        slots = [s for s, ref in layout.slots.items() if ref.module == name]
        slots.sort(key=lambda s: layout.slots[s].part)
        rows = Rows(**layout.parts[name]) if name in layout.parts else None
        reads = next((s for s in slots if layout.input_of(s) == s), None)

        def take(
            _: nn.Module, args: tuple, out: Tensor, slots=slots, rows=rows, reads=reads
        ) -> None:  # fmt: skip
            if reads is not None:
                inputs[reads] = batch.average(args[0])
            written = batch.average(out)
            parts = [written] if rows is None else [p.T for p in rows.split(written.T.contiguous())]
            outputs.update(zip(slots, parts, strict=True))

        stack.callback(block.get_submodule(name).register_forward_hook(take).remove)
