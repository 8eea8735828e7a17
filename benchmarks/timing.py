"""How long h2tune takes: seconds of one core for an update, for scoring and for the set-up, by model and length of the text.

    python benchmarks/timing.py        # writes benchmarks/results/timing.json; about ten minutes on one core

Everything is the difference of two whole runs. Processor time on one thread is measured, so that other programs on the
machine matter little. The larger model is a Llama with random weights: what it answers means nothing, how long it takes
does.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import write
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import h2tune
from h2tune.config import parse_config
from h2tune.utils.logging import quiet_libraries
from h2tune.zoo import zoo_folder

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from make_data import notes

BATCH = 16
UPDATES, SCORED = (
    {True: 60, False: 8},
    {True: 240, False: 40},
)  # for the zoo's models, which are fast, and for larger ones
SHAPES = {"10M": (256, 688, 12, 8)}  # width, width of the MLP, blocks, heads
CLASSIFY = {"kind": "classify", "prompt": "{text}", "answer": "{label}", "labels": ["routine", "urgent"]}
CHOOSE = {"kind": "choice", "prompt": "Note: {text}\nUrgent:", "answer": "{label}", "options": ["routine", "urgent"]}
GENERATE = {"kind": "generate", "prompt": "Note: {text}\nUrgent:", "answer": "{label}", "score": "text",
            "max_new_tokens": 32}  # fmt: skip


def make_models(folder: Path) -> dict[str, str]:
    """The zoo's models, and a larger one without training."""
    found = {"zoo:llama": "zoo:llama"}
    tokenizer = AutoTokenizer.from_pretrained(zoo_folder("llama"))
    for name, (width, middle, blocks, heads) in SHAPES.items():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=width, intermediate_size=middle, num_hidden_layers=blocks,
                num_attention_heads=heads, max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
            )
        )  # fmt: skip
        size = sum(p.numel() for p in model.parameters()) / 1e6
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        found[f"random Llama, {size:.0f}M"] = str(folder / name)
    return found


def make_rows(folder: Path, repeats: int) -> tuple[str, str, float]:
    """Files of 320 training and 320 test rows of so many notes each, and their mean length in tokens of zoo:llama."""
    source, tokenizer = iter(notes(random.Random(0))), AutoTokenizer.from_pretrained(zoo_folder("llama"))
    pool, rng, rows = [next(source) for _ in range(300)], random.Random(1), []
    for number in range(640):
        texts = rng.choices(pool, k=repeats)
        rows.append({"text": " ".join(t["note"] for t in texts) + f" Number {number}.", "label": texts[0]["urgency"]})
    paths = [folder / f"{part}-{repeats}.jsonl" for part in ("train", "test")]
    for path, part in zip(paths, (rows[:320], rows[320:]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    return str(paths[0]), str(paths[1]), sum(len(tokenizer(r["text"])["input_ids"]) for r in rows) / len(rows)


def seconds(
    model: str, task: dict[str, Any], rows: tuple[str, str], out: Path, steps: int, test: int, method: str
) -> float:
    """Processor seconds of one run with one client and one round."""
    client = {"name": "one", "model": model, "task": task, "train": rows[0], "test": rows[1], "n_test": test,
              "max_length": 512, "truncate": True}  # fmt: skip
    data = {"name": "timing", "rounds": 1, "rank": 16, "method": method, "clients": [client], "device": "cpu",
            "training": {"steps": steps, "batch_size": BATCH, "head_steps": 0}, "evaluation": {"n_validation": 16}}  # fmt: skip
    experiment, begin = parse_config(data), time.process_time()
    h2tune.run(experiment, out / str(len(list(out.iterdir()))))
    return time.process_time() - begin


def measure(model: str, rows: tuple[str, str], out: Path) -> dict[str, float]:
    """Seconds of an update, of scoring a hundred rows in each way, and of what h2tune does before its first round."""
    updates, scored = UPDATES[model.startswith("zoo:")], SCORED[model.startswith("zoo:")]
    seconds(model, CHOOSE, rows, out, 1, 16, "local")  # the first run of a process also imports and allocates
    short = seconds(model, CHOOSE, rows, out, 4, 16, "local")
    found = {"update": (seconds(model, CHOOSE, rows, out, 4 + updates, 16, "local") - short) / updates}
    for task in (CLASSIFY, CHOOSE, GENERATE):
        few, many = (seconds(model, task, rows, out, 1, n, "local") for n in (16, 16 + scored))
        found[f"score 100 rows, {task['kind']}"] = (many - few) * 100 / scored
    found["set-up, anchors"] = seconds(model, CHOOSE, rows, out, 4, 16, "h2tune") - short
    return found


def main() -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"batch_size": BATCH, "rank": 16, "rows": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = make_models(folder)
        for repeats in (1, 8):
            train, test, tokens = make_rows(folder, repeats)
            for label, model in models.items():
                out = folder / f"runs-{repeats}-{len(result['rows'])}"
                out.mkdir()
                row = {"model": label, "tokens": round(tokens), "seconds": measure(model, (train, test), out)}
                print(row, flush=True)
                result["rows"].append(row)
    write("timing", result)


if __name__ == "__main__":
    main()
