"""A training step with TriLoRA against one with PEFT's LoRA: same model, rank and batch; interleaved, median of pairs.

Processor seconds are measured, so that other programs on the machine matter little; on one thread they are what a clock on
the wall shows on a machine that does nothing else.

Run as: OMP_NUM_THREADS=1 python benchmarks/step.py
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from common import interval_name, median_interval, write
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from h2tune.adapter import TriLoraConfig
from h2tune.core.client_core import ClientCore, CoreShape
from h2tune.core.relation import depth_relation
from h2tune.core.slots import layout_of
from h2tune.participant.base_models import suit_cpu

BLOCKS, WIDTH, RANK, ROWS, TOKENS = 8, 512, 16, 8, 128


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2048, hidden_size=WIDTH, intermediate_size=1376, num_hidden_layers=BLOCKS, num_attention_heads=8
        )
    )


def lora_step(batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    model = base()
    targets = layout_of(model).targets
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def step() -> None:
        model(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def trilora_steps(batch: dict[str, torch.Tensor], suited: bool = False) -> dict[str, Callable[[], None]]:
    """Joint, shared and specific updates of the same adapter and core; ``suited``: on the base as a run holds it."""
    model = base()
    if suited:
        suit_cpu(model.requires_grad_(False))
    layout = layout_of(model)
    model = get_peft_model(model, TriLoraConfig(r=RANK, residual=False, target_modules=layout.targets))
    core = ClientCore(CoreShape(BLOCKS, RANK), layout, depth_relation(BLOCKS, BLOCKS))
    blocks = model.get_base_model().get_submodule(layout.blocks)
    layers = [b.get_submodule(m) for b in blocks for m in layout.modules]
    leaves = [layer.trilora_T["default"] for layer in layers]
    factors = [p for layer in layers for p in (layer.trilora_A["default"], layer.trilora_B["default"])]
    shared = torch.optim.AdamW(core.parameters(), fused=True)
    specific = torch.optim.AdamW(factors, fused=True)

    def gradients(listen_core: bool, listen_factors: bool, kl: bool = False) -> None:
        for leaf in leaves:
            leaf.requires_grad_(listen_core)
        for factor in factors:
            factor.requires_grad_(listen_factors)
        core.write(leaves)
        out = model(**batch)
        loss = out.loss
        if kl:
            with torch.no_grad():
                before = model(**batch).logits
            loss = loss + torch.nn.functional.kl_div(
                out.logits.log_softmax(-1).flatten(0, 1), before.log_softmax(-1).flatten(0, 1), log_target=True,
                reduction="batchmean",
            )  # fmt: skip
        loss.backward()

    def joint() -> None:
        gradients(True, True)
        core.pull(leaves)
        for optimiser in (shared, specific):
            optimiser.step()
            optimiser.zero_grad()

    def shared_step() -> None:
        gradients(True, False)
        core.pull(leaves)
        shared.step()
        shared.zero_grad()

    def specific_step(kl: bool = False) -> None:
        gradients(False, True, kl)
        specific.step()
        specific.zero_grad()

    return {
        "joint": joint,
        "shared": shared_step,
        "specific": specific_step,
        "specific_kl": lambda: specific_step(True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50)
    pairs = parser.parse_args().pairs
    ids = torch.randint(0, 2048, (ROWS, TOKENS))
    batch = {"input_ids": ids, "labels": ids}
    steps: dict[str, Callable[[], None]] = {"lora": lora_step(batch)} | trilora_steps(batch)
    steps["joint, as in a run"] = trilora_steps(batch, suited=True)["joint"]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for pair in range(pairs + 2):
        for name, step in steps.items():
            begin = time.process_time()
            step()
            if pair >= 2:
                times[name].append(time.process_time() - begin)
    result: dict[str, Any] = {
        "pairs": pairs,
        "clock": "processor seconds",
        "load": os.getloadavg()[0],  # processes that wanted a core at the end
        "rank": RANK,
        "batch": [ROWS, TOKENS],
        "lora_seconds": median_interval(times["lora"]),
    }
    ratios = {
        name: [a / b for a, b in zip(times[name], times["lora"], strict=True)] for name in steps if name != "lora"
    }
    ratios["alternating"] = [(a + b) / 2 for a, b in zip(ratios["shared"], ratios["specific"], strict=True)]
    ratios["alternating_kl"] = [(a + b) / 2 for a, b in zip(ratios["shared"], ratios["specific_kl"], strict=True)]
    print(f"{'update':<16} ratio to one LoRA step, median ({interval_name(pairs)})")
    for name, values in ratios.items():
        result[name] = median_interval(values)
        print("{:<16} {:.3f} ({:.3f} to {:.3f})".format(name, *result[name]))
    write("step", result)


if __name__ == "__main__":
    main()
