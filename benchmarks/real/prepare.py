"""Federations of real pretrained models: writes one YAML for each setting, for `h2tune compare`.

    python benchmarks/real/prepare.py --models MODELS --data DATA --out runs/real
    h2tune compare runs/real/sst2.yaml --methods bias,local,h2tune,h2tune-unshared --seeds 3 --jobs 1 --out runs/real/sst2

MODELS holds folders as Transformers saves them: SmolLM2-135M-Instruct as `smollm2-135m`, Gemma 3 270M as `gemma3-270m`,
Qwen2.5-Coder-0.5B as `qwen2.5-coder-0.5b`. DATA holds GLUE's own TSV files and problems as JSONL, one folder a task. A comparison that was stopped
goes on when it is started again. On one core a run of two models took 43 to 148 seconds.

Rows: `--rows` is all that a client has; validation comes out of it. Anchors: unlabelled prompts of the same task from rows
that no client trains on or is tested on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml
from rows import TASKS, anchors

FAMILIES = {"smollm": "smollm2-135m", "gemma": "gemma3-270m", "qwen": "qwen2.5-coder-0.5b"}


def federation(models: Path, data: Path, out: Path, tasks: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Client i has task i (or the one task), its own part of the rows, and model i."""
    clients = []
    for number, family in enumerate(args.families):
        task = tasks[number % len(tasks)]
        source = TASKS[task]
        clients.append({
            "name": f"{family}-{task}", "model": str((models / FAMILIES[family]).resolve()),
            "task": {"preset": task} | source.task, "max_length": 160, "truncate": True,
            "train": str((data / source.folder / source.train).resolve()), "part": f"{number + 1}/{len(args.families) + 1}",
            "test": str((data / source.folder / source.test).resolve()), "n_train": args.rows, "n_test": args.test_rows,
        })  # fmt: skip
    return {
        "name": "-".join(tasks), "rounds": args.rounds, "rank": 16, "depth": 3, "blocks": 0.34, "device": "cpu",
        "anchors": str(anchors(data, tasks[0], out).resolve()), "clients": clients,
        "training": {"steps": args.steps, "batch_size": 16, "learning_rate": 3e-4, "precision": "bf16"},
        "evaluation": {"every": args.rounds},
        "method": "h2tune", "baseline": ["local"] if args.baseline else "none",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder with the models' folders")
    parser.add_argument("--data", type=Path, required=True, help="folder with the tasks' folders")
    parser.add_argument("--out", type=Path, required=True, help="where the YAML files go")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="one client each")
    parser.add_argument("--rows", type=int, default=52, help="labelled rows of a client, validation (20) included")
    parser.add_argument("--test-rows", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=5, help="updates in a round")
    parser.add_argument("--baseline", action="store_true", help="`h2tune run` also trains every client alone")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {task: [task] for task in TASKS} | {
        "different": ["sst2", "qqp", "qnli"],
        "maths": ["gsm8k", "aqua", "program"],
    }
    for name, tasks in settings.items():
        path = args.out / f"{name}.yaml"
        made = federation(args.models, args.data, args.out, tasks, args)
        path.write_text(yaml.safe_dump(made, sort_keys=False, allow_unicode=True), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
