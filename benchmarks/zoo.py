"""What the shipped models can learn alone: every zoo model on every demo task and on SST-2, against chance.

Run as: python benchmarks/zoo.py        # about five minutes
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common import write

from h2tune.utils.logging import quiet_libraries

MODELS = ("llama", "gpt2", "qwen")
SST2 = Path(__file__).parents[2] / "shared" / "data" / "SST-2"


def settings(task: str) -> dict[str, Any]:
    """One federation of `local` clients, a zoo model each, on one task."""
    if task == "sst2":
        data = {"task": "sst2", "train": str(SST2 / "train.tsv"), "test": str(SST2 / "dev.tsv"), "n_train": 16_000,
                "max_length": 128, "truncate": True}  # fmt: skip
        training = {"steps": 150, "batch_size": 32, "learning_rate": 3e-3}
    else:
        kind = task.removeprefix("demo-")
        data = {"task": task} | {part: f"demo:{kind}?split={part}&n=300" for part in ("train", "validation", "test")}
        training = {"steps": 75, "batch_size": 16, "learning_rate": 2e-3}
    clients = [{"name": model, "model": f"zoo:{model}"} | data for model in MODELS]
    return {"rounds": 4, "rank": 16, "method": "local", "anchors": "demo", "clients": clients, "training": training,
            "evaluation": {"every": 4}, "device": "cpu"}  # fmt: skip


def main() -> None:
    quiet_libraries()
    from h2tune.config import parse_config
    from h2tune.federation import run

    rows = []
    for task in ("demo-fill", "demo-choice", "demo-program", *(["sst2"] if SST2.is_dir() else [])):
        with tempfile.TemporaryDirectory() as folder:
            metrics = run(parse_config(settings(task)), Path(folder) / "run")
        for model, client in metrics["clients"].items():
            # In the demo there are three readings of a trade word; SST-2 has its larger class.
            chance = client["majority"] if task == "sst2" else 1 / 3
            rows.append({"model": model, "task": task, "base": client["base"]["metric"], "alone": client["final"]["metric"],
                         "chance": chance})  # fmt: skip
            print(
                f"{model:<8}{task:<14}chance {chance:.3f}  untouched {rows[-1]['base']:.3f}  alone {rows[-1]['alone']:.3f}",
                flush=True,
            )
    write("zoo", {"rows": rows, "least_over_chance": min(r["alone"] - r["chance"] for r in rows)})


if __name__ == "__main__":
    main()
