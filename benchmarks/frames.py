"""Frames at the shape of a 1B model: time and memory of describing the default anchors.

Run as: python benchmarks/frames.py [--small]

Random weights at the Llama-3.2-1B shape in bf16, all threads. There is no tokenizer of that family at hand: the anchors are
tokenised by a zoo model's, which splits words more finely, so that there are more tokens than there would be. `--small` is the same
at a fraction of the shape, to try the script.
"""

from __future__ import annotations

import argparse
import resource
import threading
import time
from pathlib import Path

import torch
from common import write

from h2tune.core.slots import layout_of
from h2tune.frames.anchor_text import anchor_batch
from h2tune.frames.bases import describe
from h2tune.frames.sources import load_anchors
from h2tune.utils.logging import quiet_libraries

RANK, DIRECTIONS = 16, 4
SHAPE = {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True}  # fmt: skip
SMALL = SHAPE | {"vocab_size": 8_000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 3,
                 "num_attention_heads": 8, "num_key_value_heads": 2}  # fmt: skip


def resident_bytes() -> int:
    """What the process holds of memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Peak(threading.Thread):
    """The most memory that the process held while it was watched."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.running = resident_bytes(), True

    def run(self) -> None:
        while self.running:
            self.peak = max(self.peak, resident_bytes())
            time.sleep(0.02)

    def stop(self) -> int:
        self.running = False
        self.join()
        return self.peak


def model_of(shape: dict) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
    model = model.to_empty(device="cpu").eval()
    model.tie_weights()  # which the copy from the meta device took apart
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.02)
    # What is no parameter (the rotary frequencies) has to be computed again.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model


def main() -> None:
    from transformers import AutoTokenizer

    from h2tune.participant.base_models import resolve_source

    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    quiet_libraries()
    tokenizer = AutoTokenizer.from_pretrained(resolve_source("zoo:llama"))
    batch = anchor_batch(load_anchors("builtin"), tokenizer, 2048, causal=True)
    before = resident_bytes()
    model = model_of(SMALL if small else SHAPE)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    watch = Peak()
    watch.start()
    begin = time.perf_counter()
    bases = describe(model, layout_of(model), batch, DIRECTIONS * RANK)
    seconds = time.perf_counter() - begin
    peak = watch.stop() - before
    sent = sum(t.numel() * t.element_size() for t in bases.tensors().values())
    print(
        f"{seconds:.0f} s with {torch.get_num_threads()} threads; peak {peak / 1e9:.2f} GB, model {weights / 1e9:.2f} GB"
        f" ({peak / weights:.2f} times); {int(batch.attention_mask.sum())} tokens, {batch.rows} rows; U {sent / 1e6:.0f} MB"
    )
    if not small:
        facts = {"tokens": int(batch.attention_mask.sum()), "rows": batch.rows, "bytes_sent_once": sent}
        memory = {"model_bytes": weights, "peak_bytes": peak, "peak_over_model": peak / weights}
        write("frames", {"shape": SHAPE, "rank": RANK, "seconds": seconds} | memory | facts)


if __name__ == "__main__":
    main()
