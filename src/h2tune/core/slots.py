"""Slots: the kinds of linear map that a transformer block has, and where each family of models keeps them.

Every family is a row of `FAMILIES`. A fused map fills several slots: ``"q+k+v"`` means that its output rows are
those of q, then k, then v; ``"q/k/v"`` that they alternate head by head (GPT-NeoX), or with grouped queries group by
group: the q heads of a group, its k head, its v head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from h2tune.adapter.config import RowLayout
from h2tune.errors import H2TuneError

SLOTS = ("q", "k", "v", "o", "gate", "up", "down")
_INPUT_OF = dict.fromkeys("qkv", "attention") | {"o": "o", "gate": "mlp", "up": "mlp", "down": "down"}
INPUTS = ("attention", "o", "mlp", "down")


def input_kind(slot: str) -> str:
    """Which of a block's distinct inputs a slot reads, one of `INPUTS`."""
    return _INPUT_OF[slot]


_LLAMA = {
    "blocks": "layers",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_BERT = {
    "blocks": "encoder.layer",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
FAMILIES: dict[str, dict[str, str]] = {
    **dict.fromkeys(
        (
            "llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "granite",
            "cohere",
        ),
        _LLAMA,
    ),
    "phi3": {
        "blocks": "layers",
        "q+k+v": "self_attn.qkv_proj",
        "o": "self_attn.o_proj",
        "gate+up": "mlp.gate_up_proj",
        "down": "mlp.down_proj",
    },
    "gpt2": {"blocks": "h", "q+k+v": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    "gpt_neox": {
        "blocks": "layers",
        "q/k/v": "attention.query_key_value",
        "o": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    "opt": {
        "blocks": "decoder.layers",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "up": "fc1",
        "down": "fc2",
    },
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "camembert": _BERT,
    "distilbert": {
        "blocks": "transformer.layer",
        "q": "attention.q_lin",
        "k": "attention.k_lin",
        "v": "attention.v_lin",
        "o": "attention.out_lin",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
    },
    "modernbert": {
        "blocks": "layers",
        "q+k+v": "attn.Wqkv",
        "o": "attn.Wo",
        "gate+up": "mlp.Wi",
        "down": "mlp.Wo",
    },
    "deberta": {
        **{k: v for k, v in _BERT.items() if k not in "qkv"}, "q/k/v": "attention.self.in_proj",
    },
    "deberta-v2": {
        **_BERT, "q": "attention.self.query_proj", "k": "attention.self.key_proj", "v": "attention.self.value_proj",
    },
}  # fmt: skip
FAMILIES["starcoder2"] = {
    **{k: v for k, v in _LLAMA.items() if k not in ("gate", "up", "down")}, "up": "mlp.c_fc", "down": "mlp.c_proj",
}  # fmt: skip

_SHARED_BLOCKS = {"albert": "its blocks are one block used many times, so a core per depth means nothing for it"}


class UnknownFamilyError(H2TuneError, ValueError):
    """The model's family is not known, or the given mapping does not fit the model."""


@dataclass(frozen=True)
class SlotRef:
    """Where a block keeps a slot: the map's name inside the block, and which of its parts (0 if not fused)."""

    module: str
    part: int


@dataclass(frozen=True)
class Layout:
    """Blocks and slots of one model.

    Attributes:
        blocks: full name of the list of blocks, for example ``model.layers``.
        depth: number of blocks L_i that are adapted.
        first: number of blocks below them; their output for a text never changes.
        slots: slot -> its place, in the order of `SLOTS`; slots that the family lacks are absent.
        parts: for fused maps, rows of each part and the number of interleaved heads (`TriLoraConfig.parts`).
    """

    blocks: str
    depth: int
    slots: dict[str, SlotRef]
    parts: dict[str, RowLayout]
    first: int = 0

    @property
    def modules(self) -> list[str]:
        """Names of the adapted maps inside a block, each once."""
        return list(dict.fromkeys(ref.module for ref in self.slots.values()))

    def only(self, slots: Sequence[str] | None) -> Layout:
        """The layout with these slots alone; a fused map comes with all of its slots, or not at all."""
        if slots is None:
            return self
        modules = {ref.module for slot, ref in self.slots.items() if slot in slots}
        kept = {slot: ref for slot, ref in self.slots.items() if ref.module in modules}
        return replace(self, slots=kept, parts={m: p for m, p in self.parts.items() if m in modules})

    def top(self, share: float) -> Layout:
        """The layout with this share of the blocks alone, counted from the top and rounded up."""
        kept = max(1, math.ceil(share * self.depth - 1e-9))
        return replace(self, depth=kept, first=self.first + self.depth - kept)

    @property
    def targets(self) -> list[str]:
        """Full names of all adapted maps."""
        return [f"{name}.{module}" for name in self._names() for module in self.modules]

    def blocks_of(self, model: nn.Module) -> list[nn.Module]:
        """The adapted blocks themselves, in their order."""
        return [model.get_submodule(name) for name in self._names()]

    def below(self, model: nn.Module) -> list[nn.Module]:
        """The blocks below them."""
        return [model.get_submodule(f"{self.blocks}.{block}") for block in range(self.first)]

    def _names(self) -> list[str]:
        return [f"{self.blocks}.{block}" for block in range(self.first, self.first + self.depth)]

    def input_of(self, slot: str) -> str:
        """The slot whose recorded input this one shares: q, k and v of a block read the same vector."""
        group = _INPUT_OF[slot]
        return next(s for s in self.slots if _INPUT_OF[s] == group)

    @property
    def inputs(self) -> list[str]:
        """One slot for each distinct input of a block."""
        return list(dict.fromkeys(self.input_of(slot) for slot in self.slots))


def layout_of(model: PreTrainedModel, mapping: Mapping[str, str] | None = None) -> Layout:
    """Find a model's slots.

    Args:
        model: the base model, also on the meta device; not yet wrapped by PEFT.
        mapping: for families that `FAMILIES` does not hold, the ``slots:`` of the config.

    Raises:
        UnknownFamilyError: with the mapping to write.
    """
    family = model.config.get_text_config().model_type
    if family in _SHARED_BLOCKS:
        raise UnknownFamilyError(f"{family} cannot join a federation: {_SHARED_BLOCKS[family]}.")
    names = dict(mapping or FAMILIES.get(family) or {})
    if not names:
        raise UnknownFamilyError(_advice(model, family))
    ending = names.pop("blocks", "layers")
    blocks_name, blocks = _find_blocks(model, ending, set(names.values()), family)
    slots: dict[str, SlotRef] = {}
    parts: dict[str, RowLayout] = {}
    for key, module_name in names.items():
        fused = key.replace("/", "+").split("+")
        if unknown := [s for s in fused if s not in SLOTS]:
            raise UnknownFamilyError(f"slots: {unknown[0]!r} is not a slot; the slots are {', '.join(SLOTS)}.")
        try:
            module = blocks[0].get_submodule(module_name)
        except AttributeError:
            raise UnknownFamilyError(
                f"slots: a block of {family} has no {module_name!r}; it has {', '.join(_linears(blocks[0]))}."
            ) from None
        if len(fused) > 1:
            parts[module_name] = _parts(model, key, fused, _rows(module))
        slots |= {slot: SlotRef(module_name, i) for i, slot in enumerate(fused)}
    return Layout(blocks_name, len(blocks), {s: slots[s] for s in SLOTS if s in slots}, parts)


def _find_blocks(model: nn.Module, ending: str, maps: set[str], family: str) -> tuple[str, nn.ModuleList]:
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and (name == ending or name.endswith("." + ending)) and len(module)
    ]
    if not lists:
        raise UnknownFamilyError(f"slots: this {family} model has no list of blocks called {ending!r}.")
    # A vision tower may come first and call its blocks the same.
    return next((item for item in lists if maps <= {name for name, _ in item[1][0].named_modules()}), lists[0])


def _rows(module: nn.Module) -> int:
    if isinstance(module, Conv1D):
        return int(module.nf)
    rows = getattr(module, "out_features", None)
    if not isinstance(rows, int):
        raise UnknownFamilyError(f"slots: a {type(module).__name__} is not a linear map.")
    return rows


def _parts(model: PreTrainedModel, key: str, slots: list[str], rows: int) -> RowLayout:
    """Row layout of a fused map (`TriLoraConfig.parts`): heads of q, and of k and v, or equal parts."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    units = {"q": heads, "k": kv_heads, "v": kv_heads}
    attention = {slot in units for slot in slots}
    shares = [units.get(slot, 1) for slot in slots]
    if len(attention) > 1 or ("/" in key and attention != {True}) or rows % sum(shares):
        raise UnknownFamilyError(f"slots: {key!r} cannot lie together in the {rows} rows of one map.")
    sizes = [share * (rows // sum(shares)) for share in shares]
    return {"sizes": sizes, "interleave": kv_heads if "/" in key else 0}


def _linears(block: nn.Module) -> list[str]:
    return [name for name, module in block.named_modules() if name and getattr(module, "weight", None) is not None
            and module.weight.ndim == 2]  # fmt: skip


def _advice(model: PreTrainedModel, family: str) -> str:
    lists = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    ]
    if not lists:
        return f"The family {family!r} is not known and this model has no list of blocks."
    name, blocks = max(lists, key=lambda item: len(item[1]))
    maps = ", ".join(_linears(blocks[0]))
    return (
        f"The family {family!r} is not known. Say in the client's config which map is which (leave out what is not"
        " there):\n"
        f"  slots: {{blocks: {name}, q: ..., k: ..., v: ..., o: ..., gate: ..., up: ..., down: ...}}\n"
        f"Its blocks hold: {maps}. Write 'q+k+v' for a fused map, 'q/k/v' if its heads alternate."
    )
