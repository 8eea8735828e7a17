"""Suite D, the demo's federation: LaDa beside local training, FedMKT, other choices of paths, and ablations.

A teacher with 600 word problems, two students with 24, 300 public questions (`h2tune demo --lada`). The accuracy is the
mean over the two students; `teacher` is the teacher's own.

Run as: python benchmarks/reasoning/demo.py --seeds 5
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from suite import ABLATIONS, SMALL, answered, in_folder, kept, table

from h2tune.distill.demo import STUDENTS, TEACHER, lada_demo
from h2tune.federation import run
from h2tune.tasks.sources import read_rows
from h2tune.utils.logging import quiet_libraries

NAME = "reasoning-demo"
METHODS: dict[str, dict[str, Any]] = (
    {"local": {"directions": "none"}}
    | SMALL
    | {
        "lada-published": {"name": "lada-published"},
        "fedmkt": {},
        "fedmkt-answers": {},
        "down-off": {"directions": "up"},
        "up-off": {"directions": "down"},
    }
    | ABLATIONS
    | {  # the public questions come without answers: paths on which the teacher agrees with itself stand in for right ones
        "unanswered": {"samples": 4},
        "unanswered-random": {"samples": 4, "filter": "random"},
        "unanswered-down": {"samples": 4, "directions": "down"},
    }
)


def one(folder: Path, seed: int, method: str, settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and nats of the students and of the teacher, and bytes of a round and student."""
    quiet_libraries()
    experiment = lada_demo(seed, METHODS[method] | settings, **changes)
    if method.startswith("fedmkt"):  # on as many public texts as LaDa asks questions
        experiment = experiment.model_copy(update={"method": {"name": "fedmkt", "sentences": 100}})
    if method.startswith("unanswered"):
        asked = without_answers(experiment.public.source, folder / "questions.jsonl")
        experiment = experiment.model_copy(update={"public": experiment.public.model_copy(update={"source": asked})})
    with answered(experiment, 100) if method == "fedmkt-answers" else nullcontext():
        metrics = run(experiment, folder / "run")
    finals = {name: client["final"] for name, client in metrics["clients"].items()}
    rounds = [entry for name in STUDENTS for entry in metrics["clients"][name]["rounds"]]
    return {
        "accuracy": sum(finals[name]["metric"] for name in STUDENTS) / len(STUDENTS),
        "nats": sum(finals[name]["nats"] for name in STUDENTS) / len(STUDENTS),
        "teacher": finals[TEACHER]["metric"],
        "clients": {name: final["metric"] for name, final in finals.items()},
        "bytes_up": sum(entry["bytes_up"] for entry in rounds) / len(rounds),
        "bytes_down": sum(entry["bytes_down"] for entry in rounds) / len(rounds),
    }


def without_answers(source: str, path: Path) -> str:
    """The questions of a source alone, as a file."""
    rows = [json.dumps({"prompt": row["prompt"]}) for row in read_rows(source)]
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first seed; rates were chosen on seeds from 100 on")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rate", type=float, help="another learning rate than the demo's, the same for all methods")
    parser.add_argument("--set", type=json.loads, default={}, help="settings of LaDa for all methods, as JSON")
    parser.add_argument("--name", default=NAME, help="name of the result")
    args = parser.parse_args()
    seeds = range(args.first, args.first + args.seeds)
    changes: dict[str, Any] = {}
    if args.rate:
        changes["training"] = lada_demo().training.model_dump() | {"learning_rate": args.rate}
    for seed in seeds:
        for method in args.methods:

            def make(seed: int = seed, method: str = method) -> dict[str, Any]:
                return in_folder(lambda folder: one(folder, seed, method, args.set, changes))

            kept(args.name, f"{method}/{seed}", make, args)
    pairs = {f"lada over {other}": f"lada - {other}" for other in METHODS if other != "lada"}
    table(args.name, pairs, seeds, ("accuracy", "nats", "teacher"))


if __name__ == "__main__":
    main()
