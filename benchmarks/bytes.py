"""Bytes on the wire for a client and round at the Llama-3.2-1B shape: H2Tune's core against LoRA factors of the same rank.

Run as: python benchmarks/bytes.py

The model is built on the meta device (shapes only); messages are encoded as the client and the server encode them.
"""

from __future__ import annotations

import torch
from common import write

from h2tune.core.client_core import ClientCore, CoreShape
from h2tune.core.packing import pack_core
from h2tune.core.relation import depth_relation
from h2tune.core.slots import layout_of
from h2tune.participant.base_models import LoadedModel
from h2tune.protocol.codec import Message, Payload, encode

RANK = 16
SHAPE = {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True}  # fmt: skip


def main() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    base = LoadedModel("llama-3.2-1b", model, None, layout_of(model), "llama", True)  # type: ignore[arg-type]
    layout, rows = base.layout, {}

    def size(tensors: dict[str, torch.Tensor]) -> int:
        return len(encode(Message("update", "0" * 32, 1, "client", "method", Payload(tensors), 100)))

    factors = {}
    for index, (d_in, d_out, _) in enumerate(base.maps(layout, whole=True)):
        factors |= {f"{index}.A": torch.randn(RANK, d_in), f"{index}.B": torch.randn(d_out, RANK)}
    rows["lora"] = size(factors)
    for keep in (1.0, 0.5, 0.25):
        for mask in ("dims", "entries"):
            core = ClientCore(
                CoreShape(layout.depth, RANK), layout, depth_relation(layout.depth, layout.depth), keep, mask
            )
            core.S.data.normal_()
            rows[f"h2tune keep {keep:g} {mask}"] = size(
                pack_core(core.S, core.coverage, masked=core.scores is not None)
            )
    tied = torch.randn(1, 1, RANK, RANK)
    rows["h2tune words (one core for all)"] = size(pack_core(tied, torch.ones_like(tied).bool(), masked=False))
    for name, count in rows.items():
        print(f"{name:<34}{count:>12,} B   {rows['lora'] / count:>8.0f} times fewer than LoRA")
    write(
        "bytes", {"shape": SHAPE, "rank": RANK, "bytes": rows, "ratio": {n: rows["lora"] / c for n, c in rows.items()}}
    )


if __name__ == "__main__":
    main()
