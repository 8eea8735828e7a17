"""What a model's blocks read and write on the anchors: block after block, and in each a chunk of sentences at a time.

A forward pass of the whole model would need the rows of all blocks at once, or all sentences in one batch. So the
model is first run with blocks that do nothing, which tells with what arguments (masks, positions) it calls each
of them; then every block runs by itself on all chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from h2tune.adapter.layer import Rows
from h2tune.core.slots import Layout
from h2tune.frames.anchor_text import AnchorBatch
from h2tune.participant.prefix import standing_in

OnBlock = Callable[[int, dict[str, Tensor], dict[str, Tensor]], None]
TOKENS = 4096  # of a chunk, padding included


@dataclass
class _Chunk:
    """A part of the anchors on its way through the blocks; ``calls`` are each block's further arguments."""

    batch: AnchorBatch
    hidden: Tensor = field(init=False)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def through(self, index: int, block: nn.Module) -> None:
        args, kwargs = self.calls[index]
        out = block(self.hidden, *args, **kwargs)
        self.hidden = out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def record(
    model: PreTrainedModel, layout: Layout, batch: AnchorBatch, on_block: OnBlock, tokens: int = TOKENS
) -> None:
    """Run the anchors through the model once and hand over each block's rows as soon as the block has run.

    Args:
        model: the base model; adapters, if any, must be off.
        on_block: called with block index, inputs by slot (n x d_in; one for each distinct input) and outputs by slot
            (n x d_out). Nothing is kept after it returns, so memory stays that of one block.
        tokens: of a chunk; activations of more tokens are never held inside a block.
    """
    training = model.training
    model.eval()
    try:
        blocks = layout.blocks_of(model)
        chunks = _called(model, blocks, batch.chunks(tokens))
        for index, block in enumerate(blocks):
            reads: dict[str, Tensor] = {}
            writes: dict[str, Tensor] = {}
            for chunk in chunks:
                with _reading(block, layout, chunk.batch, reads, writes):
                    chunk.through(index, block)
            on_block(index, *_by_slot(layout, reads, writes))
    finally:
        model.train(training)


def _called(model: PreTrainedModel, blocks: list[nn.Module], batches: list[AnchorBatch]) -> list[_Chunk]:
    """What the first block reads of each batch, and with which arguments beside it the model calls each block."""
    chunks: list[_Chunk] = []
    answer: list[Callable[[Tensor], Any]] = []

    def stand_in(original: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        chunks[-1].calls.append((args, kwargs))
        if len(chunks[-1].calls) == 1:
            chunks[-1].hidden = hidden
        if not answer:  # one real call tells whether these blocks answer with a tensor or with a tuple
            form = original(hidden, *args, **kwargs)
            answer.append((lambda x: (x, *form[1:])) if isinstance(form, tuple) else (lambda x: x))
        return answer[0](hidden)

    backbone = model.base_model if hasattr(model, "base_model") else model
    device = next(model.parameters()).device
    # The setting of a model that is wrapped (Gemma 3 with its vision tower) lies in its text config.
    options = {"use_cache": False} if hasattr(model.config.get_text_config(), "use_cache") else {}
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(standing_in(block, partial(stand_in, block.forward)))
        for batch in batches:
            chunks.append(_Chunk(batch))
            backbone(input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), **options)
    return chunks


@contextmanager
def _reading(
    block: nn.Module, layout: Layout, batch: AnchorBatch, reads: dict[str, Tensor], writes: dict[str, Tensor]
) -> Iterator[None]:
    """Add a chunk's rows, by map, to ``reads`` (one map for each distinct input) and ``writes`` when the block runs."""
    first = {layout.slots[s].module for s in layout.slots if layout.input_of(s) == s}
    with ExitStack() as stack:
        for name in layout.modules:

            def take(_: nn.Module, args: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
                if name in first:
                    reads[name] = batch.average(args[0], reads.get(name))
                writes[name] = batch.average(out, writes.get(name))

            stack.callback(block.get_submodule(name).register_forward_hook(take).remove)
        yield


def _by_slot(
    layout: Layout, reads: dict[str, Tensor], writes: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A block's rows by slot; what a fused map writes is split."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for name, written in writes.items():
        slots = sorted((ref.part, s) for s, ref in layout.slots.items() if ref.module == name)
        inputs |= {s: reads[name] for _, s in slots if layout.input_of(s) == s}
        rows = Rows(**layout.parts[name]) if name in layout.parts else None
        parts = [written] if rows is None else [p.T for p in rows.split(written.T.contiguous())]
        outputs |= {s: part for (_, s), part in zip(slots, parts, strict=True)}
    return inputs, outputs
