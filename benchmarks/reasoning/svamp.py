"""Suite R1, real models on SVAMP: first the teacher is measured, then LaDa beside local training, random paths and FedMKT.

The teacher is one model, the clients are others; each client has 100 problems of one operation mostly, public questions are
600 other problems with a rationale made from their equation, the test has 300 in other wordings. Models and data are named on
the command line; where one is missing, the suite says so and ends.

    python benchmarks/reasoning/svamp.py --svamp FOLDER --teacher MODEL --students MODEL MODEL --tune 100 --out TUNED
    python benchmarks/reasoning/svamp.py --svamp FOLDER --teacher TUNED --students MODEL MODEL --measure
    python benchmarks/reasoning/svamp.py --svamp FOLDER --teacher TUNED --students MODEL MODEL

`--tune` trains the teacher on 400 problems of its own first, as the server of LaDa may: nobody else has them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from contextlib import nullcontext
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

NAME = "reasoning-real"
TASK = {
    "kind": "generate",
    "prompt": "Question: {question}\nAnswer:",
    "answer": " {answer}",
    "score": "number",
    "max_new_tokens": 40,
}
METHODS: dict[str, dict[str, Any]] = {
    "local": {"directions": "none"},
    "lada": {},
    "random": {"filter": "random"},
    "public-gold": {"filter": "gold", "contrast": 0.0},
    "fedmkt": {},
}
OWN = 400  # problems of the teacher, the same for all seeds


def infix(equation: str, numbers: str) -> str:
    """``- number0 number1`` with its numbers as ``(8 - 3)``; an equation that is infix already stays."""
    values = [f"{float(value):g}" for value in numbers.split()]
    parts = [values[int(p[6:])] if p.startswith("number") else p for p in equation.split()]
    if parts[0] not in "+-*/":
        return re.sub(r"\.0\b", "", equation)
    stack: list[str] = []
    for part in reversed(parts):
        stack.append(f"({stack.pop()} {part} {stack.pop()})" if part in "+-*/" else f"{float(part):g}")
    return stack[0]


def rows_of(path: Path) -> list[dict[str, str]]:
    """Questions with a rationale that the equation gives, ``8 - 3 = 5. The answer is 5``, and the kind of problem."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        equation = infix(str(row["Equation"]).strip(), str(row.get("Numbers", "")))
        equation = equation.removeprefix("(").removesuffix(")").strip()
        answer = f"{float(row['Answer']):g}"
        body = f"{row['Body'].strip().rstrip('.')}. " if row.get("Body") else ""
        kind = str(row.get("Type") or row["Equation"].split()[0])
        text = f"{equation} = {answer}. The answer is {answer}"
        found.append({"question": body + row["Question"], "answer": text, "kind": kind})
    return found


def teachers_rows(svamp: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The teacher's own problems, and those that are left for all others; no question is in both."""
    rows = list({row["question"]: row for row in rows_of(svamp / "train.jsonl")}.values())
    random.Random("teacher").shuffle(rows)
    return rows[:OWN], rows[OWN:]


def write_data(svamp: Path, folder: Path, seed: int, clients: int) -> None:
    """Files of a seed: each client's rows come from one kind of problem for two thirds."""
    rng = random.Random(f"real/{seed}")
    (own, rows), test = teachers_rows(svamp), rows_of(svamp / "test.jsonl")
    rng.shuffle(rows)
    kinds = sorted({row["kind"] for row in rows})
    _write(folder / "0-train.jsonl", own[20:])
    _write(folder / "0-validation.jsonl", own[:20])
    for number in range(1, clients):
        own = kinds[number % len(kinds)]
        mostly = [row for row in rows if row["kind"] == own][:80]
        others = [row for row in rows if row["kind"] != own][:40]
        rows = [row for row in rows if row not in mostly and row not in others]
        part = mostly + others
        rng.shuffle(part)
        _write(folder / f"{number}-train.jsonl", part[20:])
        _write(folder / f"{number}-validation.jsonl", part[:20])
    _write(folder / "public.jsonl", rows)
    _write(folder / "test.jsonl", test)


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def experiment(folder: Path, models: list[str], seed: int, method: dict[str, Any], args: argparse.Namespace) -> Any:
    clients = [
        {"name": "teacher" if number == 0 else f"student-{number}", "model": model, "task": TASK, "n_test": args.tests,
         "train": str(folder / f"{number}-train.jsonl"), "validation": str(folder / f"{number}-validation.jsonl"),
         "test": str(folder / "test.jsonl")} for number, model in enumerate(models)
    ]  # fmt: skip
    lada = {"name": "lada", "teacher": "teacher", "slice": args.slice, "budget": "8KB"}
    data = {
        "name": "real", "seed": seed, "rounds": args.rounds, "rank": 8, "blocks": args.blocks, "clients": clients, "device": args.device,
        "public": {"source": str(folder / "public.jsonl"), "task": TASK, "limit": args.public},
        "training": {"steps": args.steps, "batch_size": args.batch, "learning_rate": args.rate,
                     "checkpointing": args.checkpointing, "precision": args.precision},
        "evaluation": {"every": 99, "n_validation": 20, "batch_size": 16}, "method": lada | method,
    }  # fmt: skip
    if method.get("name") == "fedmkt":
        data["method"] = {"name": "fedmkt", "sentences": args.slice}
    return parse_config(data)


def tune(folder: Path, model: str, args: argparse.Namespace) -> None:
    """Train the teacher alone on its own problems and write it as a model's folder, with its LoRA merged."""
    write_data(args.svamp, folder, 0, 1)
    parts = {part: str(folder / f"0-{part}.jsonl") for part in ("train", "validation")}
    client = {"name": "teacher", "model": model, "task": TASK, "n_test": 8, "test": str(folder / "test.jsonl")} | parts
    run(parse_config({
        "name": "teacher", "rounds": 1, "rank": 16, "clients": [client], "device": args.device, "method": "local",
        "training": {"steps": args.tune, "batch_size": 8, "learning_rate": args.rate}, "evaluation": {"n_validation": 20},
    }), folder / "run")  # fmt: skip
    export(folder / "run", "teacher", args.out, to="merged")


def measure(folder: Path, models: list[str], tests: int, device: str) -> dict[str, Any]:
    """What every untouched model gets right on the public questions, and how many tokens a second it writes."""
    task, found = build_task(TASK), {}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svamp", type=Path, required=True, help="folder with train.jsonl and test.jsonl of SVAMP")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--students", nargs="+", required=True)
    parser.add_argument("--measure", action="store_true", help="only measure the untouched models")
    parser.add_argument("--tune", type=int, default=0, help="only tune the teacher, with so many updates, into --out")
    parser.add_argument("--out", type=Path, help="folder of the tuned teacher")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds")
    parser.add_argument("--device", default="cpu", help="`auto`, `cpu`, `cuda`, ...")
    parser.add_argument("--name", default=NAME, help="name of the result")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    for name, default in (("rounds", 3), ("steps", 20), ("slice", 60), ("public", 180), ("tests", 100), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument(
        "--blocks", type=float, default=1.0, help="share of the blocks, from the top, that are trained"
    )
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--precision", default="fp32", help="`bf16` is faster where the machine computes in it")
    args = parser.parse_args()
    models = [args.teacher, *args.students]
    leave_unless_here(args.svamp, *models)
    quiet_libraries()
    if args.tune:
        in_folder(lambda folder: tune(folder, args.teacher, args) or {})
        return
    if args.measure:

        def base(folder: Path) -> dict[str, Any]:
            write_data(args.svamp, folder, 0, len(models))
            return measure(folder, models, args.tests, args.device)

        kept(args.name, "untouched", lambda: in_folder(base))
        return
    seeds = range(args.first, args.first + args.seeds)
    for seed in seeds:
        for method in args.methods:

            def one(folder: Path, seed: int = seed, method: str = method) -> dict[str, Any]:
                write_data(args.svamp, folder, seed, len(models))
                changes = METHODS[method] | ({"name": "fedmkt"} if method == "fedmkt" else {})
                federation = experiment(folder, models, seed, changes, args)
                with answered(federation, args.slice) if method == "fedmkt" else nullcontext():
                    metrics = run(federation, folder / "run")
                finals = {name: client["final"] for name, client in metrics["clients"].items()}
                students = [final for name, final in finals.items() if name != "teacher"]
                return {"accuracy": sum(f["metric"] for f in students) / len(students),
                        "nats": sum(f["nats"] for f in students) / len(students), "teacher": finals["teacher"]["metric"],
                        "teacher_nats": finals["teacher"]["nats"], "clients": finals,
                        "flows": metrics["flows"] and [{k: r[k] for k in ("student", "right", "learnt", "bytes", "kept")}
                                                       for r in metrics["flows"]["table"]]}  # fmt: skip

            kept(args.name, f"{method}/{seed}", lambda one=one: in_folder(one))
    pairs = {f"lada over {other}": f"lada - {other}" for other in METHODS if other != "lada"}
    table(args.name, pairs, seeds, ("accuracy", "nats", "teacher", "teacher_nats"))


if __name__ == "__main__":
    main()
