"""Does `torch.compile` pay for local training on a CPU? A forward and backward pass of a PEFT LoRA, with and without.

    OMP_NUM_THREADS=1 python benchmarks/speed/compiled.py zoo:llama MODELS/smollm2-135m

Three forms of the same model take turns: as it is, with each block compiled, and as it is on the base as a run of h2tune holds
it (`h2tune.participant.products`). Processor seconds, medians with 95 % intervals; 8 rows of 64 tokens, LoRA of rank 8 on all maps.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from bare import TARGETS
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from h2tune.participant.base_models import suit_cpu
from h2tune.zoo import zoo_folder

sys.path.append(str(Path(__file__).parents[1]))
from common import median_interval, write

PASSES = 15


def model_of(source: str, form: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).requires_grad_(False)
    if form == "h2tune's products":
        suit_cpu(model)
    found = get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM"))
    if form == "compiled":
        for block in model.model.layers:
            block.compile()
    return found.train()


def passed(model: Any, ids: torch.Tensor) -> float:
    """Seconds of the processor of a pass and its gradients."""
    begin = time.process_time()
    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad()
    return time.process_time() - begin


def measured(source: str) -> dict[str, Any]:
    torch.manual_seed(0)
    models = {form: model_of(source, form) for form in ("as it is", "compiled", "h2tune's products")}
    ids = torch.randint(0, 1000, (8, 64))
    first = {form: passed(model, ids) for form, model in models.items()}
    times: dict[str, list[float]] = {form: [] for form in models}
    for _ in range(PASSES):
        for form, model in models.items():
            times[form].append(passed(model, ids))
    found = {form: {"first": first[form], "later": median_interval(times[form])} for form in models}
    saved = found["as it is"]["later"][0] - found["compiled"]["later"][0]
    spent = first["compiled"] - first["as it is"]
    return found | {"updates_until_compiling_pays": math.ceil(spent / saved) if saved > 0 else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="zoo:NAME or folders")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folders = [str(zoo_folder(m.removeprefix("zoo:"))) if m.startswith("zoo:") else m for m in args.models]
    found = {Path(folder).name: measured(folder) for folder in folders}
    for name, result in found.items():
        print(name, result)
    write("speed/compiled", {"passes": PASSES, "clock": "processor seconds", "models": found})


if __name__ == "__main__":
    main()
