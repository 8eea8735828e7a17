"""Recording: what every map of a block reads and writes, block by block, in chunks of sentences."""

from __future__ import annotations

import pytest
import torch
from families import NAMES, build
from tiny_tokenizers import LINES, tokenizer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from h2tune.adapter.layer import Rows
from h2tune.core.slots import layout_of
from h2tune.frames.activations import record
from h2tune.frames.anchor_text import AnchorBatch, anchor_batch


def anchors(model: PreTrainedModel) -> AnchorBatch:
    return anchor_batch(LINES, tokenizer("characters"), 512, causal=True)


def test_recording_hands_over_block_by_block_and_leaves_the_model_as_it_was() -> None:
    model = build("gpt_neox").train()
    layout, order = layout_of(model), []
    for index, block in enumerate(model.gpt_neox.layers):
        block.mlp.register_forward_pre_hook(lambda *_, index=index: order.append(f"run {index}"))
    hooks = {name: len(m._forward_hooks) for name, m in model.named_modules()}

    def keep(block: int, reads: dict[str, Tensor], writes: dict[str, Tensor]) -> None:
        order.append(f"keep {block}")
        assert set(reads) >= {"q", "o", "up", "down"}
        assert list(writes) == ["q", "k", "v", "o", "up", "down"]
        assert len({len(t) for t in (*reads.values(), *writes.values())}) == 1

    record(model, layout, anchors(model), keep)
    # Before anything else one call of a block tells how blocks answer.
    assert order == ["run 0", "run 0", "keep 0", "run 1", "keep 1"]
    assert model.training
    assert all("forward" not in vars(block) for block in model.gpt_neox.layers)
    assert {name: len(m._forward_hooks) for name, m in model.named_modules()} == hooks


@pytest.mark.parametrize("family", NAMES)
def test_chunks_of_sentences_give_the_same_rows(family: str) -> None:
    model = build(family)
    layout, batch = layout_of(model), anchors(model)
    whole, parts = [], []
    record(model, layout, batch, lambda *found: whole.append(found))
    longest = batch.input_ids.shape[1]
    assert len(batch.chunks(2 * longest)) > 2
    record(model, layout, batch, lambda *found: parts.append(found), tokens=2 * longest)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other[1:], one[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", NAMES)
def test_a_block_reads_what_it_reads_when_the_whole_model_runs(family: str) -> None:
    model = build(family)
    layout, batch = layout_of(model), anchors(model)
    wanted: list[Tensor] = []
    module = model.get_submodule(f"{layout.blocks}.{layout.depth - 1}.{layout.slots['up'].module}")
    handle = module.register_forward_hook(lambda _, args, out: wanted.append(batch.average(args[0])))
    with torch.no_grad():
        model.eval().base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    handle.remove()
    seen: list[dict[str, Tensor]] = []
    record(model, layout, batch, lambda block, reads, writes: seen.append(reads), tokens=100)
    torch.testing.assert_close(seen[-1][layout.input_of("up")], wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt_neox", "phi3", "gpt2"])
def test_outputs_of_fused_maps_are_recorded_slot_by_slot(family: str) -> None:
    """A slot's rows alone, set to 0, leave only that slot without variance."""
    model = build(family)
    layout = layout_of(model)
    module_name = layout.slots["k"].module
    module = model.get_submodule(f"{layout.blocks}.0.{module_name}")
    weight = module.weight.data.T if isinstance(module, Conv1D) else module.weight.data
    rows = Rows(**layout.parts[module_name]).split(torch.arange(len(weight))[:, None])[1][:, 0]
    weight[rows] = 0
    seen: list[dict[str, Tensor]] = []
    record(model, layout, anchors(model), lambda block, reads, writes: seen.append(dict(writes)))
    assert float(seen[0]["k"].std(0).max()) < 1e-5
    assert all(float(t.std(0).min()) > 1e-4 for slot, t in seen[0].items() if slot in "qv")
