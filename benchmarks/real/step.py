"""What an update on the top blocks costs from the cached prefix, beside PEFT's LoRA on the same blocks and on all.

    python benchmarks/real/step.py --model MODELS/smollm2-135m

Batch of 16 texts of 48 tokens, one thread, the base in bfloat16 for all three, logits at the answer alone for all three. The three
are timed in turns, so that a busy machine hits them alike; the figures are medians of ratios with 95 % intervals.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from h2tune.adapter import TriLoraConfig
from h2tune.core.slots import layout_of
from h2tune.participant.base_models import suit_cpu
from h2tune.participant.passes import PLAIN, Passes
from h2tune.participant.prefix import Prefix
from h2tune.participant.state_cache import StateCache

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import interval_name, median_interval, write  # noqa: E402 - benchmarks are scripts, not a package

ROWS, TOKENS, RANK = 16, 48, 16


def batch(vocabulary: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(10, vocabulary, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[:, -2:] = ids[:, -2:]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


class Trained:
    """A model with an adapter on some blocks, and its optimiser.

    Args:
        cached: the blocks below are not computed anew. suited: as a run holds a base on a CPU, with the attention that is faster.
    """

    def __init__(self, source: Path, share: float, adapter: str, cached: bool, suited: bool = False) -> None:
        base: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).requires_grad_(False)
        if suited:
            suit_cpu(base)
        layout = layout_of(base).top(share)
        settings: dict[str, Any] = {"r": RANK, "target_modules": layout.targets, "task_type": "CAUSAL_LM"}
        config = TriLoraConfig(**settings) if adapter == "trilora" else LoraConfig(**settings, lora_alpha=RANK)
        self.passes = Passes(Prefix(base, layout, "step", StateCache(1 << 30))) if cached else PLAIN
        self.model = get_peft_model(base, config).train()
        trained = [p for n, p in self.model.named_parameters() if p.requires_grad and "_T." not in n]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-4)

    def step(self, rows: dict[str, torch.Tensor]) -> float:
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.passes.answered(self.model, rows).loss
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.34)
    parser.add_argument("--pairs", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ours = Trained(args.model, args.share, "trilora", True, suited=True)
    same, whole = Trained(args.model, args.share, "lora", False), Trained(args.model, 1.0, "lora", False)
    alike = Trained(args.model, args.share, "lora", False, suited=True)
    rows = batch(ours.model.config.vocab_size)
    begin = time.perf_counter()
    with torch.no_grad():
        ours.passes.answered(ours.model, rows)
    filling = time.perf_counter() - begin
    every = {"cached prefix": ours, "PEFT, same blocks": same, "PEFT, same blocks, our attention": alike, "PEFT, all blocks": whole}  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in every}
    for number in range(args.pairs + 1):
        for name, trained in every.items():
            seconds = trained.step(rows)
            if number:  # the first warms up
                times[name].append(seconds)
    mine = times.pop("cached prefix")
    result = {
        "model": args.model.name, "blocks": args.share, "rows": ROWS, "tokens": TOKENS, "rank": RANK, "base": "bfloat16",
        "first_pass_seconds": filling, "intervals": interval_name(args.pairs), "update_seconds": sorted(mine)[len(mine) // 2],
        "ratio": {n: median_interval([a / b for a, b in zip(mine, t, strict=True)]) for n, t in times.items()},
    }  # fmt: skip
    print(result)
    write("prefix", result)


if __name__ == "__main__":
    main()
