"""What the suites of real models share: a federation of a teacher and students, its methods, and the command line.

Models and data are named on the command line; where one is missing, the suite says so and ends. `--tune` trains the teacher on
problems of its own first, as the server of LaDa may, and `--measure` shows what every untouched model gets right:

    python benchmarks/reasoning/svamp.py --svamp FOLDER --teacher MODEL --students MODEL MODEL --tune 100 --out TUNED
    python benchmarks/reasoning/svamp.py --svamp FOLDER --teacher TUNED --students MODEL MODEL --measure
    python benchmarks/reasoning/svamp.py --svamp FOLDER --teacher TUNED --students MODEL MODEL

What the frozen blocks say of a text is computed once for all runs of a command.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite import answered, in_folder, kept, leave_unless_here, table

from h2tune.config import parse_config
from h2tune.exporting import export
from h2tune.federation import run
from h2tune.participant.base_models import ModelPool
from h2tune.participant.prepare import Split
from h2tune.participant.scoring import score
from h2tune.tasks.custom import build_task
from h2tune.tasks.dataset import load_examples
from h2tune.tasks.prompts import encode
from h2tune.utils.logging import quiet_libraries

METHODS: dict[str, dict[str, Any]] = {
    "local": {"directions": "none"},
    "lada": {},
    "random": {"filter": "random"},
    "public-gold": {"filter": "gold", "contrast": 0.0},
    "fedmkt": {},
}
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Suite:
    """A world of problems.

    Attributes:
        name: of its data, and of the option that names their folder. result: name under which figures are kept.
        write: writes the files of a seed for so many clients (`write_client`), and the public questions.
        rows: rows of a student, where that can be chosen.
    """

    name: str
    result: str
    task: dict[str, Any]
    write: Callable[[argparse.Namespace, Path, int, int], None]
    rows: int | None = None


def jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_client(folder: Path, number: int, own: Rows, test: Rows) -> None:
    """A client's files; its first 20 problems are for validation."""
    for part, rows in (("validation", own[:20]), ("train", own[20:]), ("test", test)):
        jsonl(folder / f"{number}-{part}.jsonl", rows)


def experiment(
    task: dict[str, Any], folder: Path, models: list[str], seed: int, method: str, args: argparse.Namespace
) -> Any:
    clients = [
        {"name": "teacher" if number == 0 else f"student-{number}", "model": model, "task": task, "n_test": args.tests,
         "train": str(folder / f"{number}-train.jsonl"), "validation": str(folder / f"{number}-validation.jsonl"),
         "test": str(folder / f"{number}-test.jsonl")} for number, model in enumerate(models)
    ]  # fmt: skip
    lada = {"name": "lada", "teacher": "teacher", "slice": args.slice, "budget": "8KB"} | METHODS[method]
    data = {
        "name": "real", "seed": seed, "rounds": args.rounds, "rank": 8, "blocks": args.blocks, "clients": clients, "device": args.device,
        "public": {"source": str(folder / "public.jsonl"), "task": task, "limit": args.public},
        "training": {"steps": args.steps, "batch_size": args.batch, "learning_rate": args.rate,
                     "checkpointing": args.checkpointing, "precision": args.precision},
        "evaluation": {"every": 99, "n_validation": 20, "batch_size": 16}, 
        "method": {"name": "fedmkt", "sentences": args.slice} if method == "fedmkt" else lada,
    }  # fmt: skip
    return parse_config(data)


def tune(suite: Suite, folder: Path, model: str, args: argparse.Namespace) -> None:
    """Train the teacher alone on its own problems and write it as a model's folder, with its LoRA merged."""
    suite.write(args, folder, 0, 1)
    parts = {part: str(folder / f"0-{part}.jsonl") for part in ("train", "validation")}
    client = {
        "name": "teacher",
        "model": model,
        "task": suite.task,
        "n_test": 8,
        "test": str(folder / "0-test.jsonl"),
    } | parts
    run(parse_config({
        "name": "teacher", "rounds": 1, "rank": 16, "clients": [client], "device": args.device, "method": "local",
        "training": {"steps": args.tune, "batch_size": 8, "learning_rate": args.rate}, "evaluation": {"n_validation": 20},
    }), folder / "run")  # fmt: skip
    export(folder / "run", "teacher", args.out, to="merged")


def measure(spec: dict[str, Any], folder: Path, models: list[str], tests: int, device: str) -> dict[str, Any]:
    """What every untouched model gets right on the public questions, and how many tokens a second it writes."""
    task, found = build_task(spec), {}
    examples = load_examples(str(folder / "public.jsonl"), task, limit=tests)
    for model in dict.fromkeys(models):
        base = ModelPool(device).get(model)
        part = Split(examples, encode(examples, base.tokenizer, max_length=512))
        begin = time.perf_counter()
        result = score(base.model, base.tokenizer, task, part.examples, part.encoded, 16)
        found[Path(model).name] = result.plain() | {
            "seconds": round(time.perf_counter() - begin, 1),
            "questions": tests,
        }
    return found


def one(
    suite: Suite, pool: ModelPool, folder: Path, models: list[str], seed: int, method: str, args: Any
) -> dict[str, Any]:
    """Accuracy and nats of the students and of the teacher after a run."""
    suite.write(args, folder, seed, len(models))
    federation = experiment(suite.task, folder, models, seed, method, args)
    with answered(federation, args.slice) if method == "fedmkt" else nullcontext():
        metrics = run(federation, folder / "run", models=pool)
    pool.release()  # the next run begins with the same bases
    finals = {name: client["final"] for name, client in metrics["clients"].items()}
    students = [final for name, final in finals.items() if name != "teacher"]
    flows = metrics["flows"] and [
        {k: row[k] for k in ("student", "right", "learnt", "bytes", "kept")} for row in metrics["flows"]["table"]
    ]
    return {"accuracy": sum(f["metric"] for f in students) / len(students),
            "nats": sum(f["nats"] for f in students) / len(students), "teacher": finals["teacher"]["metric"],
            "teacher_nats": finals["teacher"]["nats"], "clients": finals, "flows": flows}  # fmt: skip


def arguments(suite: Suite, doc: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        f"--{suite.name}", dest="data", type=Path, required=True, help="folder with train.jsonl and test.jsonl"
    )
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--students", nargs="+", required=True)
    parser.add_argument("--measure", action="store_true", help="only measure the untouched models")
    parser.add_argument("--tune", type=int, default=0, help="only tune the teacher, with so many updates, into --out")
    parser.add_argument("--out", type=Path, help="folder of the tuned teacher")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds")
    parser.add_argument("--device", default="cpu", help="`auto`, `cpu`, `cuda`, ...")
    parser.add_argument("--name", default=suite.result, help="name of the result")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    for name, default in (("rounds", 3), ("steps", 20), ("slice", 60), ("public", 180), ("tests", 100), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument(
        "--blocks", type=float, default=1.0, help="share of the blocks, from the top, that are trained"
    )
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--precision", default="fp32", help="`bf16` is faster where the machine computes in it")
    if suite.rows is not None:
        parser.add_argument("--rows", type=int, default=suite.rows, help="problems that a student trains on")
    return parser.parse_args()


def main(suite: Suite, doc: str | None) -> None:
    """Run what is not there yet, print the differences and keep them."""
    args = arguments(suite, doc)
    models = [args.teacher, *args.students]
    leave_unless_here(args.data, *models)
    quiet_libraries()
    if args.tune:
        in_folder(lambda folder: tune(suite, folder, args.teacher, args) or {})
        return
    if args.measure:

        def untouched(folder: Path) -> dict[str, Any]:
            suite.write(args, folder, 0, len(models))
            return measure(suite.task, folder, models, args.tests, args.device)

        kept(args.name, "untouched", lambda: in_folder(untouched), args)
        return
    seeds = range(args.first, args.first + args.seeds)
    with tempfile.TemporaryDirectory() as states:
        pool = ModelPool(args.device, Path(states), precision=args.precision)
        for seed in seeds:
            for method in args.methods:

                def cell(folder: Path, seed: int = seed, method: str = method) -> dict[str, Any]:
                    return one(suite, pool, folder, models, seed, method, args)

                kept(args.name, f"{method}/{seed}", lambda cell=cell: in_folder(cell), args)
    pairs = {f"lada over {other}": f"lada - {other}" for other in METHODS if other != "lada"}
    table(args.name, pairs, seeds, ("accuracy", "nats", "teacher", "teacher_nats"))
