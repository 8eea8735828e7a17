"""The work that every contestant does: clients on one base model, LoRA of rank 8, some rounds of some updates of 8 x 64 tokens.

    python benchmarks/speed/work.py FOLDER --clients 32        # writes the work, once and before anything is timed

FOLDER holds the same thing twice: `federation.yaml` with rows as text for h2tune, and `batches.npz` with the very batches
that h2tune will take from these rows, in its order, for those who come without its data code. The peers thus neither
tokenise nor shuffle. `start.npz` holds the factors A with which all begin (B is 0).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROWS, TOKENS, RANK, TEST = 8, 64, 8, 4  # rows of a batch, tokens of a row, rank, test and validation rows of a client
RATE = 2e-3
sys.path.append(str(Path(__file__).parents[2] / "examples"))


def rows(rng: random.Random, count: int) -> list[dict[str, str]]:
    """Notes, each cut into a prompt and how it goes on; both together have more tokens than are read of them."""
    from make_data import notes

    source = notes(rng)
    texts = [" ".join(next(source)["note"] for _ in range(6)) for _ in range(count)]
    return [{"text": text[: len(text) // 2], "rest": text[len(text) // 2 :][:90]} for text in texts]


def federation(folder: Path, clients: int, rounds: int, steps: int, model: str, **changes: Any) -> dict[str, Any]:
    """The experiment as h2tune reads it."""
    task = {"kind": "generate", "prompt": "{text}", "answer": "{rest}", "score": "text", "max_new_tokens": 4}
    rows = [
        {"name": f"c{i:02d}", "model": model, "task": task, "max_length": TOKENS, "truncate": True}
        | {part: str(folder / f"c{i:02d}-{part}.jsonl") for part in ("train", "validation", "test")}
        for i in range(clients)
    ]
    training = {"steps": steps, "batch_size": ROWS, "learning_rate": RATE, "schedule": "constant", "warmup": 0.0}
    return {
        "name": "speed", "rounds": rounds, "rank": RANK, "method": "fedit", "device": "cpu", "clients": rows,
        "training": training | {"label_bias": False}, "evaluation": {"every": rounds + 1},
    } | changes  # fmt: skip


def write_rows(folder: Path, clients: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(clients):
        rng = random.Random(i)
        for part, count in (("train", 80), ("validation", TEST), ("test", TEST)):
            text = "".join(json.dumps(row) + "\n" for row in rows(rng, count))
            (folder / f"c{i:02d}-{part}.jsonl").write_text(text)


def write_batches(folder: Path, plain: dict[str, Any]) -> None:
    """The batches (clients x rounds x updates x rows x tokens) and the A of every map, as h2tune makes them."""
    import torch

    from h2tune.config import parse_config
    from h2tune.participant.base_models import ModelPool
    from h2tune.participant.context import ClientContext
    from h2tune.utils.seeds import derive

    experiment, models = parse_config(plain), ModelPool("cpu")
    ids: list[Any] = []
    labels: list[Any] = []
    for config in experiment.clients:
        context = ClientContext(config, experiment, models)
        for number in range(1, experiment.rounds + 1):
            stream = context.batches(number)
            for _ in range(experiment.training.steps):
                batch, _ = next(stream)
                assert bool(batch["attention_mask"].all()) and batch["input_ids"].shape == (ROWS, TOKENS)
                ids.append(batch["input_ids"].numpy())
                labels.append(batch["labels"].numpy())
    shape = (len(experiment.clients), experiment.rounds, experiment.training.steps, ROWS, TOKENS)
    np.savez(folder / "batches.npz", ids=np.stack(ids).reshape(shape), labels=np.stack(labels).reshape(shape))
    start = {}
    for index, (name, (d_in, _, _)) in enumerate(
        zip(context.layout.targets, context.base.maps(context.layout), strict=True)
    ):
        generator = torch.Generator().manual_seed(derive(experiment.seed, "factors", 0, index))
        start[name] = torch.empty(RANK, d_in).uniform_(-(d_in**-0.5), d_in**-0.5, generator=generator).numpy()
    np.savez(folder / "start.npz", **start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--model", default="zoo:llama")
    args = parser.parse_args()
    folder = args.folder.resolve()
    write_rows(folder, args.clients)
    plain = federation(folder, args.clients, args.rounds, args.steps, args.model)
    (folder / "federation.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    write_batches(folder, plain)


if __name__ == "__main__":
    main()
