"""Attempts to break a gain: does averaging help for the reason that is claimed?

Run as: python benchmarks/accuracy/breaks.py runs/breaks [--seeds 2]

On `items-same.yaml` (one answer format, three families, glossary frames), averaged and not averaged:

shuffled answers    what a client trains on is permuted among its rows: there is nothing to learn, so nothing may be gained
private codes       the codes of terms and meanings are salted with the client's name: everybody's frames are as good as
                    before, but a core means something else to everybody, so averaging must not help

Written to benchmarks/results/breaks.json. Restartable: finished runs are kept.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from variants import experiment_of, figures, line

from h2tune.frames import glossary as practice
from h2tune.frames import lexicon as glossary
from h2tune.participant.base_models import ModelPool
from h2tune.tasks.sources import read_rows
from h2tune.utils.logging import quiet_libraries

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import write  # noqa: E402

VARIANTS = {"averaged": {}, "not averaged": {"method": {"name": "h2tune-unshared"}}}
Plain = dict[str, Any]


def shuffled(source: str, folder: Path) -> str:
    """A file with the source's rows, in which every row has the answer of another."""
    rows = read_rows(source)
    answers = [row["answer"] for row in rows]
    random.Random(source).shuffle(answers)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"shuffled-{source.rpartition('=')[2]}.jsonl"
    lines = [json.dumps(row | {"answer": a, "gold": a}) for row, a in zip(rows, answers, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path.resolve())


@contextmanager
def private_codes() -> Iterator[None]:
    """While this lasts, every client has codes of its own."""
    public, practised = glossary.code, practice.practise

    def practise(method: Any, rate: float) -> None:
        salt = method.context.name

        def code(name: str, rank: int) -> torch.Tensor:
            return public(f"{salt}: {name}", rank)

        glossary.code = practice.code = code
        try:
            practised(method, rate)
        finally:
            glossary.code = practice.code = public

    practice.practise = practise
    try:
        yield
    finally:
        practice.practise = practised


def accuracy(found: Plain) -> float:
    clients = [figure["metric"] for name, figure in found.items() if name != "seconds"]
    return sum(clients) / len(clients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    quiet_libraries()
    plan = {"base": "items-same.yaml", "read": "test", "variants": VARIANTS}
    base = yaml.safe_load((HERE / plan["base"]).read_text(encoding="utf-8"))
    results: dict[str, dict[str, Any]] = {}
    for kind in ("as it is", "shuffled answers", "private codes"):
        models = ModelPool("cpu", args.out / ("frames-private" if kind == "private codes" else "frames"))
        for seed in range(args.seeds):
            for name in VARIANTS:
                changes: Plain = {}
                if kind == "shuffled answers":
                    sources = [c["train"].replace("{seed}", str(seed)) for c in base["clients"]]
                    changes = {"every_client": {"train": shuffled(sources[0], args.out / "data")}}
                experiment = experiment_of(plan | {"all": changes}, HERE, args.out, name, seed)
                folder = args.out / kind.replace(" ", "-") / name.replace(" ", "-") / f"seed-{seed}"
                if kind == "private codes":
                    with private_codes():
                        found = figures(experiment, folder, models)
                else:
                    found = figures(experiment, folder, models)
                results.setdefault(f"{kind}, {name}", {})[str(seed)] = found
                print(kind, line(name, seed, found, "test"), flush=True)
    table = {name: [accuracy(found) for found in seeds.values()] for name, seeds in results.items()}
    write("breaks", {"accuracy": table, "results": results})


if __name__ == "__main__":
    main()
