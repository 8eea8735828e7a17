"""Where every family keeps its slots: the right maps, the right rows, at full size; what other families are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from families import BLOCKS, HIDDEN, NAMES, build, logits, perturb
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from h2tune.adapter import TriLoraConfig
from h2tune.adapter.layer import Rows
from h2tune.core.slots import INPUTS, SLOTS, Layout, UnknownFamilyError, input_kind, layout_of

LLAMA = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
BERT = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "o": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense",
}  # fmt: skip
GPT2 = {
    "q": "attn.c_attn",
    "k": "attn.c_attn",
    "v": "attn.c_attn",
    "o": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
NEOX = {
    **dict.fromkeys("qkv", "attention.query_key_value"), "o": "attention.dense",
    "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h",
}  # fmt: skip
PHI3 = {
    **dict.fromkeys("qkv", "self_attn.qkv_proj"), "o": "self_attn.o_proj",
    **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"), "down": "mlp.down_proj",
}  # fmt: skip
OPT = {s: LLAMA[s] for s in "qkv"} | {"o": "self_attn.out_proj", "up": "fc1", "down": "fc2"}
EXPECTED = {
    "phi3": ("model.layers", PHI3),
    "gpt2": ("transformer.h", GPT2),
    "gpt_neox": ("gpt_neox.layers", NEOX),
    "opt": ("model.decoder.layers", OPT),
    "bert-cls": ("bert.encoder.layer", BERT),
    "roberta-cls": ("roberta.encoder.layer", BERT),
    "electra-cls": ("electra.encoder.layer", BERT),
    "distilbert-cls": ("distilbert.transformer.layer", {
        **{s: f"attention.{s}_lin" for s in "qkv"}, "o": "attention.out_lin", "up": "ffn.lin1", "down": "ffn.lin2"}),
    "modernbert-cls": ("model.layers", {
        **dict.fromkeys("qkv", "attn.Wqkv"), "o": "attn.Wo", **dict.fromkeys(("gate", "up"), "mlp.Wi"), "down": "mlp.Wo"}),
    "deberta-cls": ("deberta.encoder.layer", BERT | dict.fromkeys("qkv", "attention.self.in_proj")),
    "deberta-v2-cls": ("deberta.encoder.layer", BERT | {
        "q": "attention.self.query_proj", "k": "attention.self.key_proj", "v": "attention.self.value_proj"}),
}  # fmt: skip
OWN_ATTENTION = ("deberta-cls", "deberta-v2-cls")  # it cannot be exchanged


@pytest.mark.parametrize("family", NAMES)
def test_slots_are_where_the_family_has_them(family: str) -> None:
    model = build(family)
    layout = layout_of(model)
    blocks, modules = EXPECTED.get(family, ("model.layers", LLAMA))
    assert layout.blocks == blocks
    assert layout.depth == len(model.get_submodule(blocks)) == (3 if family == "llama-tied" else BLOCKS)
    assert {slot: ref.module for slot, ref in layout.slots.items()} == modules
    assert list(layout.slots) == [s for s in SLOTS if s in modules]
    assert len(layout.targets) == layout.depth * len(set(modules.values()))
    for target in layout.targets:
        assert isinstance(model.get_submodule(target), (nn.Linear, Conv1D))
    assert layout.inputs == [s for s in layout.slots if s not in ("k", "v") and (s != "up" or "gate" not in modules)]
    assert {input_kind(s) for s in layout.slots} == set(INPUTS)


seen: dict[str, Tensor] = {}


def _spy(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    if "q" not in seen:  # the first block's
        seen.update(q=query, k=key, v=value)
    return torch.zeros_like(query).transpose(1, 2).contiguous(), None


AttentionInterface.register("spy", _spy)


def silence(model: PreTrainedModel, layout: Layout, slot: str) -> None:
    """Set the output rows of one slot of the first block to 0."""
    ref = layout.slots[slot]
    module = model.get_submodule(layout.blocks)[0].get_submodule(ref.module)
    out = model.get_submodule(layout.blocks)[0].get_submodule(ref.module).bias
    weight = module.weight.data.T if isinstance(module, Conv1D) else module.weight.data
    rows = torch.arange(weight.shape[0])
    if ref.module in layout.parts:
        rows = Rows(**layout.parts[ref.module]).split(rows[:, None])[ref.part][:, 0]
    weight[rows] = 0
    if out is not None:
        out.data[rows] = 0


@pytest.mark.parametrize("slot", "qkv")
def test_debertas_rows_are_the_parts_that_its_attention_cuts(slot: str) -> None:
    model = build("deberta-cls")
    layout = layout_of(model)
    silence(model, layout, slot)
    attention = model.deberta.encoder.layer[0].attention.self
    # As its forward does: heads first, then the three parts of a head.
    parts = attention.transpose_for_scores(attention.in_proj(torch.randn(1, 5, HIDDEN))).chunk(3, dim=-1)
    assert [bool(part.any()) for part in parts] == [other != slot for other in "qkv"]


@pytest.mark.parametrize("family", [name for name in NAMES if name not in OWN_ATTENTION])
def test_the_rows_of_q_k_and_v_are_what_attention_gets(family: str) -> None:
    """Silence one slot: attention sees zeros there, and what it saw before in the other two."""

    def attention(slot: str | None) -> dict[str, Tensor]:
        model = build(family)
        layout = layout_of(model)
        model.set_attn_implementation("spy")
        if slot:
            silence(model, layout, slot)
        seen.clear()
        logits(model)
        return dict(seen)

    before = attention(None)
    assert all(t.abs().min(-1).values.max() > 0 for t in before.values())
    for slot in "qkv":
        after = attention(slot)
        for other in "qkv":
            assert torch.equal(after[other], torch.zeros_like(before[other]) if other == slot else before[other])


@pytest.mark.parametrize(("family", "activation"), [("phi3", "activation_fn"), ("modernbert-cls", "act")])
def test_the_rows_of_gate_are_what_the_activation_gets(family: str, activation: str) -> None:
    for slot, silent in (("gate", True), ("up", False)):
        model = build(family)
        silence(model, layout_of(model), slot)
        got: list[Tensor] = []
        getattr(model.model.layers[0].mlp, activation).register_forward_hook(
            lambda m, args, out, got=got: got.append(args[0])
        )
        logits(model)
        assert bool(got[0].any()) is not silent


# Config numbers of published checkpoints -> rows of each slot, from q to down, and columns of q, o, down.
FULL: dict[str, tuple[str, dict[str, Any], int, dict[str, int], tuple[int, int, int]]] = {
    "Llama-3.2-1B": ("Llama", {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}, 16,
        {"q": 2048, "k": 512, "v": 512, "o": 2048, "gate": 8192, "up": 8192, "down": 2048}, (2048, 2048, 8192)),
    "Qwen2.5-0.5B": ("Qwen2", {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}, 24,
        {"q": 896, "k": 128, "v": 128, "o": 896, "gate": 4864, "up": 4864, "down": 896}, (896, 896, 4864)),
    "Gemma-2-2b": ("Gemma2", {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000}, 26,
        {"q": 2048, "k": 1024, "v": 1024, "o": 2304, "gate": 9216, "up": 9216, "down": 2304}, (2304, 2048, 9216)),
    "Phi-3-mini": ("Phi3", {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064}, 32,
        {"q": 3072, "k": 3072, "v": 3072, "o": 3072, "gate": 8192, "up": 8192, "down": 3072}, (3072, 3072, 8192)),
    "GPT-2": ("GPT2", {}, 12, {"q": 768, "k": 768, "v": 768, "o": 768, "up": 3072, "down": 768}, (768, 768, 3072)),
    "Pythia-160m": ("GPTNeoX", {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "vocab_size": 50304}, 12,
        {"q": 768, "k": 768, "v": 768, "o": 768, "up": 3072, "down": 768}, (768, 768, 3072)),
    "OPT-125m": ("OPT", {"hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "vocab_size": 50272}, 12,
        {"q": 768, "k": 768, "v": 768, "o": 768, "up": 3072, "down": 768}, (768, 768, 3072)),
    "bert-base": ("Bert", {}, 12, {"q": 768, "k": 768, "v": 768, "o": 768, "up": 3072, "down": 768}, (768, 768, 3072)),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_full_size_shapes_walk_without_weights(name: str) -> None:
    kind, numbers, depth, rows, columns = FULL[name]
    auto = hf.AutoModelForSequenceClassification if kind == "Bert" else hf.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(getattr(hf, f"{kind}Config")(**numbers))
    layout = layout_of(model)
    assert layout.depth == depth
    config = TriLoraConfig(r=16, target_modules=layout.targets, parts=layout.parts or None)
    peft = get_peft_model(model, config, low_cpu_mem_usage=True)
    blocks = peft.get_submodule(f"base_model.model.{layout.blocks}")
    found: dict[str, int] = {}
    for block in blocks:
        for slot, ref in layout.slots.items():
            layer = block.get_submodule(ref.module)
            found[slot] = layer.trilora_rows["default"].sizes[ref.part]
            assert layer.trilora_B["default"].shape == (layer.out_features, 16)
    assert found == rows
    reads = [
        blocks[-1].get_submodule(layout.slots[slot].module).trilora_A["default"].shape[1]
        for slot in ("q", "o", "down")
    ]
    assert tuple(reads) == columns
    assert all(p.is_meta for p in peft.parameters())


def bloom() -> PreTrainedModel:
    """A family that the table does not hold; fused, heads alternating."""
    torch.manual_seed(0)
    config = hf.BloomConfig(vocab_size=64, hidden_size=HIDDEN, n_layer=2, n_head=4, attn_implementation="eager")
    model = hf.BloomForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return model


BLOOM = {
    "blocks": "h", "q/k/v": "self_attention.query_key_value", "o": "self_attention.dense", "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}  # fmt: skip


def test_an_unknown_family_is_told_what_to_write() -> None:
    with pytest.raises(UnknownFamilyError) as caught:
        layout_of(bloom())
    text = str(caught.value)
    assert "'bloom' is not known" in text
    assert "slots: {blocks: transformer.h, q: " in text
    for module in list(BLOOM.values())[1:]:
        assert module in text
    assert "'q/k/v' if its heads alternate" in text


@pytest.mark.parametrize("blocks", ["h", "transformer.h"])
def test_an_unknown_family_works_with_its_mapping(blocks: str) -> None:
    model = bloom()
    layout = layout_of(model, BLOOM | {"blocks": blocks})
    assert layout.blocks == "transformer.h"
    assert layout.parts == {"self_attention.query_key_value": {"sizes": [32, 32, 32], "interleave": 4}}
    before = logits(model)
    # What is added to every key of a head alike falls out of the softmax (there is no rotation): k is really k.
    bias = model.transformer.h[0].self_attention.query_key_value.bias.data
    rows = Rows(**layout.parts["self_attention.query_key_value"])
    q, k, v = rows.split(torch.arange(96)[:, None])
    for part, moves in ((q, True), (k, False), (v, True)):
        bias[part[:, 0]] += 3.0
        change = float((logits(model) - before).abs().max())
        assert change > 1e-3 if moves else change < 1e-5
        bias[part[:, 0]] -= 3.0
    peft = perturb(get_peft_model(model, TriLoraConfig(r=4, target_modules=layout.targets, parts=layout.parts))).eval()
    forward = logits(peft)
    assert (forward - before).abs().max() > 0.01
    peft.merge_adapter()
    torch.testing.assert_close(logits(peft), forward, atol=1e-5, rtol=0)


def test_a_mapping_may_leave_slots_out_and_overrules_the_table() -> None:
    layout = layout_of(build("llama"), {"blocks": "layers", "q": "self_attn.q_proj", "v": "self_attn.v_proj"})
    assert list(layout.slots) == ["q", "v"]
    assert layout.targets == [f"model.layers.{i}.self_attn.{m}" for i in range(2) for m in ("q_proj", "v_proj")]
    assert (layout.inputs, layout.input_of("v")) == (["q"], "q")


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"blocks": "h", "query": "attn.c_attn"}, "'query' is not a slot; the slots are q, k, v, o, gate, up, down"),
        ({"blocks": "h", "q": "attn.q"}, "no 'attn.q'; it has attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj"),
        ({"blocks": "stages", "q": "attn.c_attn"}, "no list of blocks called 'stages'"),
        ({"blocks": "h", "q+k+v": "mlp.c_fc", "o": "attn.c_proj"}, "'q\\+k\\+v' cannot lie together in the 128 rows"),
        ({"blocks": "h", "gate/up": "mlp.c_fc"}, "'gate/up' cannot"),
        ({"blocks": "h", "q+up": "mlp.c_fc"}, "'q\\+up' cannot"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(mapping: dict[str, str], says: str) -> None:
    with pytest.raises(UnknownFamilyError, match=says):
        layout_of(build("gpt2"), mapping)


def test_albert_is_refused_with_the_reason() -> None:
    config = hf.AlbertConfig(
        vocab_size=64, hidden_size=32, num_attention_heads=4, intermediate_size=32, embedding_size=16
    )
    with pytest.raises(
        UnknownFamilyError, match="albert cannot join a federation: its blocks are one block used many times"
    ):
        layout_of(hf.AlbertForSequenceClassification(config))


def test_the_language_part_of_a_model_with_a_vision_tower_is_found() -> None:
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    with torch.device("meta"):
        model = hf.Gemma3ForConditionalGeneration(hf.Gemma3Config(text_config=text, vision_config=vision))
    layout = layout_of(model)
    assert (layout.blocks, layout.depth) == ("model.language_model.layers", 2)


@pytest.mark.parametrize(
    ("sizes", "kv_heads", "key"), [([32, 16, 16], 2, "q/k/v"), ([32, 8, 8], 1, "q/k/v"), ([32, 16, 16], 2, "q+k+v")]
)
def test_grouped_query_sizes_of_fused_maps(sizes: list[int], kv_heads: int, key: str) -> None:
    """Alternating rows go by group: the queries that share a key and value head, then these two."""
    model = hf.Phi3ForCausalLM(
        hf.Phi3Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
                      num_key_value_heads=kv_heads, pad_token_id=0)
    )  # fmt: skip
    layout = layout_of(model, {"blocks": "layers", key: "self_attn.qkv_proj"})
    part = layout.parts["self_attn.qkv_proj"]
    assert part["sizes"] == sizes
    q, k, v = (p[:, 0].tolist() for p in Rows(**part).split(torch.arange(sum(sizes))[:, None]))
    if key == "q/k/v":
        group = sum(sizes) // kv_heads
        starts = [g * group for g in range(kv_heads)]
        assert k == [s + group - 16 + i for s in starts for i in range(8)]
        assert v == [s + group - 8 + i for s in starts for i in range(8)]
        assert q == [s + i for s in starts for i in range(group - 16)]
    else:
        assert (q, k, v) == (list(range(32)), list(range(32, 48)), list(range(48, 64)))


def test_a_choice_of_slots_keeps_fused_maps_whole() -> None:
    whole = layout_of(build("phi3"))
    some = whole.only(["q", "down"])
    assert list(some.slots) == ["q", "k", "v", "down"]
    assert some.parts == {"self_attn.qkv_proj": whole.parts["self_attn.qkv_proj"]}
    assert some.targets == [f"model.layers.{i}.{m}" for i in range(2) for m in ("self_attn.qkv_proj", "mlp.down_proj")]
    assert whole.only(None) is whole
    alone = layout_of(build("llama")).only(["v", "up"])
    assert (list(alone.slots), alone.inputs) == (["v", "up"], ["v", "up"])
