"""Frames of whole models: a model and a copy of it in another hidden basis read and write the same coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from families import HIDDEN, build, ids
from peft import get_peft_model
from tiny_tokenizers import LINES, tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from h2tune.adapter import TriLoraConfig
from h2tune.core.client_core import CoreShape
from h2tune.core.relation import depth_relation
from h2tune.core.slots import Layout, layout_of
from h2tune.frames import bases
from h2tune.frames import consensus as fr
from h2tune.frames.activations import record
from h2tune.frames.anchor_text import AnchorBatch, anchor_batch

RANK, DIRECTIONS = 4, 16
SHAPE = CoreShape(3, RANK)
Made = Callable[[], tuple[PreTrainedModel, PreTrainedModel]]


def anchors(model: PreTrainedModel) -> AnchorBatch:
    return anchor_batch(LINES, tokenizer("characters"), 512, causal=True)


def fold(norm: nn.Module, maps: list[nn.Module]) -> None:
    """Move a norm's gain (and bias) into the maps that read it: the same function, but the norm is plain."""
    bias = getattr(norm, "bias", None)
    for module in maps:
        rows = module.weight.data if isinstance(module, Conv1D) else module.weight.data.T  # in x out
        if bias is not None:
            module.bias.data += bias.data @ rows
        rows.mul_(norm.weight.data[:, None])
    norm.weight.data.fill_(1.0)
    if bias is not None:
        bias.data.zero_()


def turn(q: Tensor, reads: list[nn.Module], writes: list[nn.Module], embeddings: list[nn.Module]) -> None:
    """Rotate the hidden basis, x -> x Q."""
    for module in embeddings:
        module.weight.data = module.weight.data @ q
    for module in reads:
        conv = isinstance(module, Conv1D)
        module.weight.data = q.T @ module.weight.data if conv else module.weight.data @ q
    for module in writes:
        conv = isinstance(module, Conv1D)
        module.weight.data = module.weight.data @ q if conv else q.T @ module.weight.data
        if module.bias is not None:
            module.bias.data = module.bias.data @ q


def rotation(fixes_ones: bool) -> Tensor:
    """An orthogonal matrix; one that fixes the ones vector, so that LayerNorm's mean stays what it is."""
    generator = torch.Generator().manual_seed(7)
    if not fixes_ones:
        return torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator))[0]
    start = torch.cat([torch.ones(HIDDEN, 1), torch.randn(HIDDEN, HIDDEN - 1, generator=generator)], dim=1)
    u = torch.linalg.qr(start)[0]
    inner = torch.linalg.qr(torch.randn(HIDDEN - 1, HIDDEN - 1, generator=generator))[0]
    return u @ torch.block_diag(torch.ones(1, 1), inner) @ u.T


def llamas(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    plain = build(family)
    for block in plain.model.layers:
        attention, mlp = block.self_attn, block.mlp
        reads = [attention.qkv_proj] if family == "phi3" else [attention.q_proj, attention.k_proj, attention.v_proj]
        ups = [mlp.gate_up_proj] if family == "phi3" else [mlp.gate_proj, mlp.up_proj]
        fold(block.input_layernorm, reads)
        fold(block.post_attention_layernorm, ups)
    fold(plain.model.norm, [plain.lm_head])
    turned = build(family)
    turned.load_state_dict(plain.state_dict())
    reads, writes = [turned.lm_head], []
    for block in turned.model.layers:
        attention, mlp = block.self_attn, block.mlp
        reads += [m for n, m in block.named_modules() if n.endswith(("q_proj", "k_proj", "v_proj", "qkv_proj"))]
        reads += [m for n, m in block.named_modules() if n.endswith(("gate_proj", "up_proj"))]
        writes += [attention.o_proj, mlp.down_proj]
    turn(rotation(False), reads, writes, [turned.model.embed_tokens])
    return plain, turned


def gpt2s() -> tuple[PreTrainedModel, PreTrainedModel]:
    """The output is left out: it is tied to the embedding, and no block reads it."""
    plain = build("gpt2")
    for block in plain.transformer.h:
        fold(block.ln_1, [block.attn.c_attn])
        fold(block.ln_2, [block.mlp.c_fc])
    fold(plain.transformer.ln_f, [])
    turned = build("gpt2")
    turned.load_state_dict(plain.state_dict())
    h = turned.transformer.h
    turn(
        rotation(True),
        [m for block in h for m in (block.attn.c_attn, block.mlp.c_fc)],
        [m for block in h for m in (block.attn.c_proj, block.mlp.c_proj)],
        [turned.transformer.wte, turned.transformer.wpe],
    )
    return plain, turned


def neoxes() -> tuple[PreTrainedModel, PreTrainedModel]:
    plain = build("gpt_neox")
    plain.gpt_neox.final_layer_norm.bias.data.zero_()
    for block in plain.gpt_neox.layers:
        fold(block.input_layernorm, [block.attention.query_key_value])
        fold(block.post_attention_layernorm, [block.mlp.dense_h_to_4h])
    plain.embed_out = nn.Linear(HIDDEN, 64, bias=True)
    fold(plain.gpt_neox.final_layer_norm, [plain.embed_out])
    turned = build("gpt_neox")
    turned.embed_out = nn.Linear(HIDDEN, 64, bias=True)
    turned.load_state_dict(plain.state_dict())
    blocks = turned.gpt_neox.layers
    turn(
        rotation(True),
        [turned.embed_out, *(m for b in blocks for m in (b.attention.query_key_value, b.mlp.dense_h_to_4h))],
        [m for b in blocks for m in (b.attention.dense, b.mlp.dense_4h_to_h)],
        [turned.gpt_neox.embed_in],
    )
    return plain, turned


PAIRS: dict[str, Made] = {
    "llama": lambda: llamas("llama"),
    "phi3": lambda: llamas("phi3"),
    "gpt2": gpt2s,
    "gpt_neox": neoxes,
}
EVERY = pytest.mark.parametrize("family", PAIRS)


def hidden(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.base_model(input_ids=ids()).last_hidden_state


def rows_of(model: PreTrainedModel, layout: Layout) -> list[dict[str, Tensor]]:
    """For each block, what every map reads, by the map's name."""
    found: list[dict[str, Tensor]] = []

    def keep(block: int, reads: dict[str, Tensor], writes: dict[str, Tensor]) -> None:
        found.append({ref.module: reads[layout.input_of(slot)] for slot, ref in layout.slots.items()})

    record(model, layout, anchors(model), keep)
    return found


def agreed(models: list[PreTrainedModel]) -> tuple[bases.Frames, list[bases.Bases]]:
    described = [bases.describe(m, layout_of(m), anchors(m), DIRECTIONS) for m in models]
    slots = tuple(described[0].layout.slots)
    return bases.agree({str(i): d.tensors() for i, d in enumerate(described)}, CoreShape(3, RANK, slots)), described


@EVERY
def test_the_copy_is_the_same_function(family: str) -> None:
    plain, turned = PAIRS[family]()
    torch.testing.assert_close(hidden(turned) @ rotation(family[:3] == "gpt").T, hidden(plain), atol=1e-4, rtol=0)
    assert (hidden(turned) - hidden(plain)).abs().max() > 0.1


@EVERY
def test_a_model_and_its_rotated_copy_read_the_same_rows(family: str) -> None:
    pair = PAIRS[family]()
    frames, described = agreed(list(pair))
    relation, layout = depth_relation(3, 2), described[0].layout
    one, two = (d.regress(frames, relation) for d in described)
    rows = [rows_of(model, layout) for model in pair]
    for index, (a, b) in enumerate(zip(one, two, strict=True)):
        block, module = divmod(index, len(layout.modules))
        x, y = (r[block][layout.modules[module]] for r in rows)
        scale = float((x @ a[0].T).abs().max())
        assert scale > 0.1
        torch.testing.assert_close(y @ b[0].T, x @ a[0].T, atol=5e-3 * scale, rtol=0)
        # A constant is not read: A x = A (x - mean) on the anchors.
        assert float((a[0] @ x.mean(0)).abs().max()) < 1e-4 * scale
    turned_somewhere = [(a[0] - b[0]).abs().max() > 0.01 for a, b in zip(one, two, strict=True)]
    assert any(turned_somewhere)


@EVERY
def test_one_middle_matrix_does_the_same_in_both(family: str) -> None:
    """What sharing is for: the same T changes a model and its rotated copy in the same way."""
    pair = PAIRS[family]()
    frames, described = agreed(list(pair))
    after, before = [], [hidden(model) for model in pair]
    for model, basis in zip(pair, described, strict=True):
        layout = basis.layout
        peft = get_peft_model(
            model, TriLoraConfig(r=RANK, residual=False, target_modules=layout.targets, parts=layout.parts or None)
        )
        generator = torch.Generator().manual_seed(3)
        for target, (a, b) in zip(layout.targets, basis.regress(frames, depth_relation(3, 2)), strict=True):
            layer = peft.get_submodule(f"base_model.model.{target}")
            t = layer.trilora_T["default"]
            layer.trilora_A["default"].data, layer.trilora_B["default"].data = a, b
            t.data = torch.randn(t.shape, generator=generator) * 0.2
        after.append(hidden(peft.base_model.model))
    q = rotation(family[:3] == "gpt")
    change, other = after[0] - before[0], (after[1] - before[1]) @ q.T
    assert change.abs().max() > 0.1
    torch.testing.assert_close(other, change, atol=0.02 * float(change.abs().max()), rtol=0)


def test_agreement_tells_one_model_from_strangers() -> None:
    same, described = agreed(list(PAIRS["llama"]()))
    assert same.agreement is not None
    figures = torch.tensor(same.agreement["in"])
    assert figures.shape == (3, len(same.agreement["inputs"]))
    assert figures.min() > 0.98
    assert torch.tensor(same.agreement["out"]).shape == (3, 7)
    n = 200
    strangers = {}
    for name in "ab":
        x = torch.randn(n, DIRECTIONS, generator=torch.Generator().manual_seed(ord(name)))
        u = torch.linalg.qr(x - x.mean(0))[0] * n**0.5
        strangers[name] = {key: u.half() for key in described[0].tensors()}
    apart = bases.agree(strangers, SHAPE)
    assert apart.agreement is not None
    assert torch.tensor(apart.agreement["in"]).max() < 0.3


def test_frames_travel_and_a_late_joiner_regresses_on_what_is_stored() -> None:
    plain, turned = PAIRS["llama"]()
    frames, (early, late) = agreed([plain, turned])
    received = bases.Frames.from_tensors(frames.tensors(), SHAPE)
    assert received.agreement is None
    relation = depth_relation(3, 2)
    rows, layout = rows_of(turned, late.layout), late.layout
    for index, (mine, stored) in enumerate(
        zip(late.regress(frames, relation), late.regress(received, relation), strict=True)
    ):
        block, module = divmod(index, len(layout.modules))
        x = rows[block][layout.modules[module]]
        torch.testing.assert_close(x @ stored[0].T, x @ mine[0].T, atol=0.02, rtol=0)
    alone, _ = agreed([plain])
    assert alone.inputs.keys() == frames.inputs.keys()
    assert len(early.regress(alone, relation)) == len(layout.targets)


@pytest.mark.parametrize(
    "change",
    [
        {"in.attention": torch.zeros(2, 50, RANK)},
        {"in.attention": torch.zeros(3, 50, RANK + 1)},
        {"in.attention": torch.zeros(3, 50)},
        {"in.nothing": torch.zeros(3, 50, RANK)},
        {"between.q": torch.zeros(3, 50, RANK)},
        {"q": torch.zeros(3, 50, RANK)},
    ],
    ids=str,
)
def test_received_frames_that_do_not_fit_are_refused(change: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError):
        bases.Frames.from_tensors(change, SHAPE)


@pytest.mark.parametrize("change", ["rows", "flat", "wide", "side", "block"])
def test_malformed_bases_are_refused(change: str) -> None:
    model = build("llama")
    good = bases.describe(model, layout_of(model), anchors(model), DIRECTIONS).tensors()
    key = next(iter(good))
    bad = dict(good)
    if change in ("rows", "flat", "wide"):
        bad[key] = {"rows": good[key][:-1], "flat": good[key][0], "wide": good[key].T}[change]
    else:
        bad[{"side": "up.0.q", "block": "in.x.attention"}[change]] = bad.pop(key)
    with pytest.raises(ValueError):
        bases.agree({"a": good, "b": bad}, SHAPE)


def test_families_and_tokenizers_of_all_kinds_have_frames_together() -> None:
    """A decoder with grouped queries, one without a gate, and an encoder; each cuts the anchors in its own way."""
    described = {}
    for family, kind, special in (
        ("llama-tied", "unigram", True),
        ("gpt2", "bytes", False),
        ("bert-cls", "wordpiece", True),
    ):
        model = build(family)
        # The tiny models know 64 tokens.
        sized = model.get_input_embeddings().num_embeddings
        batch = anchor_batch(LINES, tokenizer(kind, special), 512, causal=family != "bert-cls")
        batch = replace(batch, input_ids=batch.input_ids % sized)
        described[family] = bases.describe(model, layout_of(model), batch, DIRECTIONS)
    frames = bases.agree({name: d.tensors() for name, d in described.items()}, SHAPE)
    assert all(torch.isfinite(g).all() for g in (*frames.inputs.values(), *frames.outputs.values()))
    for basis in described.values():
        factors = basis.regress(frames, depth_relation(SHAPE.depth, basis.layout.depth))
        for (a, b), target in zip(factors, basis.layout.targets, strict=True):
            module = build(next(n for n, d in described.items() if d is basis)).get_submodule(target)
            shape = module.weight.shape if isinstance(module, Conv1D) else module.weight.T.shape
            assert (a.shape, b.shape) == ((RANK, shape[0]), (shape[1], RANK))


def test_models_with_some_slots_only_have_frames_for_these() -> None:
    model = build("llama")
    layout = layout_of(model, {"blocks": "layers", "q": "self_attn.q_proj", "v": "self_attn.v_proj"})
    basis = bases.describe(model, layout, anchors(model), DIRECTIONS)
    frames = bases.agree({"a": basis.tensors()}, CoreShape(2, RANK, ("q", "v")))
    assert list(frames.outputs) == ["q", "v"]
    assert len(basis.regress(frames, depth_relation(2, 2))) == 4


def test_only_left_factors_are_sent_and_equal_models_send_equal_ones() -> None:
    model = build("gpt2")
    batch = anchors(model)
    basis = bases.describe(model, layout_of(model), batch, DIRECTIONS)
    sent = basis.tensors()
    assert all(
        t.dtype == torch.float16 and t.shape[0] == batch.rows and t.shape[1] <= DIRECTIONS for t in sent.values()
    )
    outputs = {key for key in sent if key.startswith("out.")}
    assert outputs == {f"out.{block}.{slot}" for block in range(2) for slot in ("q", "k", "v", "o", "up", "down")}
    for u in sent.values():
        gram = u.double().T @ u.double() / batch.rows
        torch.testing.assert_close(gram, torch.eye(u.shape[1], dtype=torch.float64), atol=5e-3, rtol=0)
    again = bases.describe(build("gpt2"), layout_of(model), batch, DIRECTIONS)
    assert again.digest == basis.digest
    model.transformer.h[1].mlp.c_fc.weight.data[0] += 0.1
    assert bases.describe(model, layout_of(model), batch, DIRECTIONS).digest != basis.digest


def test_adapters_that_are_off_change_no_basis() -> None:
    model = build("llama")
    layout, batch = layout_of(model), anchors(model)
    bare = bases.describe(model, layout, batch, DIRECTIONS)
    peft = get_peft_model(model, TriLoraConfig(r=RANK, target_modules=layout.targets))
    for name, parameter in peft.named_parameters():
        if "trilora_" in name:
            nn.init.normal_(parameter)
    with peft.disable_adapter():
        assert bases.describe(model, layout, batch, DIRECTIONS).digest == bare.digest
    assert bases.describe(model, layout, batch, DIRECTIONS).digest != bare.digest


def test_every_block_regresses_on_the_depths_it_reads_and_fused_rows_go_where_their_slot_has_them() -> None:
    """GPT-NeoX: 4 heads of 8 rows, q, k, v in turn; B of a part is the regression of that slot's own output."""
    model = build("gpt_neox")
    basis = bases.describe(model, layout_of(model), anchors(model), DIRECTIONS)
    frames = bases.agree({"a": basis.tensors()}, SHAPE)
    relation = torch.tensor([[0.7, 0.0], [0.3, 0.4], [0.0, 0.6]])
    factors = basis.regress(frames, relation)
    for block in range(2):
        a, b = factors[block * 4]  # the first of four maps: q, k and v
        shares = relation[:, block].tolist()
        read = sum(p * g for p, g in zip(shares, frames.inputs["attention"], strict=True))
        torch.testing.assert_close(a, fr.read_matrix(basis.inputs[block]["attention"], read), atol=1e-5, rtol=1e-4)
        for part, slot in enumerate("qkv"):
            rows = [head * 24 + part * 8 + row for head in range(4) for row in range(8)]
            written = sum(p * g for p, g in zip(shares, frames.outputs[slot], strict=True))
            wanted = fr.write_matrix(basis.outputs[block][slot], written)
            torch.testing.assert_close(b[rows], wanted, atol=1e-5, rtol=1e-4)
