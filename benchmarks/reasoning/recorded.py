"""Suites R1 and R2 with a recorded teacher: real models, the large one asked only once.

The teacher is tuned on problems of its own, as the server of LaDa may be, and its answers to all public questions are
recorded: paths, log-likelihoods, scores. Every run replays them, so that a run costs what its students cost. Nothing flows
up. R1 is SVAMP (`--svamp`): students have 40 problems (`--rows`), two thirds of one kind; the test has SVAMP's own wordings,
which nobody trains on. R2 is MathQA answered by short Python programs (`--programs`): a student for each of three domains.

For FedMKT the teacher is tuned in the same way and its predictions of the public questions with their right answers are kept
in the folder `--predictions`.

    python benchmarks/reasoning/recorded.py --svamp FOLDER --teacher MODEL --students MODEL
    python benchmarks/reasoning/recorded.py --programs FOLDER --teacher MODEL --students MODEL MODEL MODEL
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from recorded_problems import PROGRAMS, SVAMP
from recorded_teacher import (
    Replay,
    ReplayFedMkt,
    base,
    clients_of,
    predictions,
    record,
    write,
)
from suite import RESULTS, answered, in_folder, kept, leave_unless_here, table

from h2tune.config import parse_config
from h2tune.participant.base_models import ModelPool
from h2tune.protocol.codec import Payload
from h2tune.server import Server
from h2tune.tasks.public import load_questions
from h2tune.transport.inprocess import InProcess
from h2tune.utils.logging import quiet_libraries

METHODS: dict[str, dict[str, Any]] = {
    "local": {"directions": "none"},
    "lada": {},
    "random": {"filter": "random"},
    "public-gold": {"filter": "gold", "contrast": 0.0},
    "sft": {"contrast": 0.0},
    "all": {"filter": "all"},
    "fedmkt": {},
    "lada-fedmkt": {"host": {"name": "fedmkt"}},
    "random-fedmkt": {"host": {"name": "fedmkt"}, "filter": "random"},
}


def one(
    folder: Path, models: ModelPool, seed: int, method: str, answers: dict[str, Any], args: argparse.Namespace
) -> Any:
    """Accuracy and nats of the students after a run with a method."""
    _, public, left = args.problems.fixed_rows(args.data, args.public)
    test = args.problems.rows_of(args.data / "test.jsonl")
    # In the teacher's place stands a small model that is never asked.
    few = write(folder / "few.jsonl", public[:8])
    clients = [
        {
            "name": "teacher",
            "model": "zoo:gpt2",
            "task": args.problems.task,
            "train": few,
            "validation": few,
            "test": few,
        }
    ]
    for number, model in enumerate(args.students):
        parts = args.problems.students_rows(left, test, seed, number, args)
        files = {part: write(folder / f"{number}-{part}.jsonl", rows) for part, rows in parts.items()}
        clients.append({"name": f"student-{number}", "model": model, "task": args.problems.task} | files)
    each = args.public // args.rounds  # questions of a round
    lada = {
        "name": "lada",
        "teacher": "teacher",
        "directions": "down",
        "slice": each,
        "budget": args.budget,
    }
    chosen = {"name": "fedmkt", "sentences": each} if method == "fedmkt" else lada | args.set | METHODS[method]
    experiment = parse_config(base(folder, public, args) | {
        "seed": seed, "rounds": args.rounds, "clients": clients, "method": chosen,
        "training": {"steps": args.steps, "batch_size": 4, "learning_rate": args.rate, "precision": args.precision}})  # fmt: skip
    store, identity, made = clients_of(experiment, folder / "run", models)
    teacher: Any = made["teacher"].method
    replay = Replay(made["teacher"], answers)
    teacher.train = replay.train
    if method not in ("local", "fedmkt"):
        teacher.answer = replay.answer
    if method.endswith("fedmkt"):
        said = predictions(args.predictions, folder / "teacher", args)
        spoken = ReplayFedMkt(made["teacher"], *said, load_questions(experiment.public), each)
        teacher.join = spoken.join
        teacher.train = spoken.train if method == "fedmkt" else both(spoken.train, replay.train)
    server = Server(experiment, identity, list(made), InProcess(made), store)
    with answered(experiment, each) if method == "fedmkt" else nullcontext():
        server.run()
    models.release()  # the next run begins with the same bases
    finals = {name: member.final for name, member in server.members.items() if name != "teacher"}
    rows = [row for row in server.method.report().get("flows", {}).get("table", []) if row["student"] != "teacher"]
    return {
        "accuracy": sum(f["metric"] for f in finals.values()) / len(finals),
        "nats": sum(f["nats"] for f in finals.values()) / len(finals), "clients": finals,
        "untouched": {name: server.members[name].base for name in finals},
        "flows": [{k: row[k] for k in ("student", "right", "high", "learnt", "bytes", "kept", "refused", "n_student",
                                       "n_teacher", "n_student_slice", "n_teacher_slice")} for row in rows],
    }  # fmt: skip


def both(host: Callable[..., Payload], paths: Callable[..., Payload]) -> Callable[..., Payload]:
    """What the teacher of LaDa over a host sends after a round: the host's tensors, and that it learnt from no path."""

    def train(round: int, payload: Payload) -> Payload:
        return Payload(host(round, payload).tensors, paths(round, payload).meta)

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--svamp", type=Path, help="folder with train.jsonl and test.jsonl of SVAMP")
    data.add_argument("--programs", type=Path, help="the same, of MathQA with programs")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--students", nargs="+", required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--methods", nargs="*", default=["local", "lada", "random", "public-gold"], choices=list(METHODS)
    )
    for name, default in (
        ("rounds", 3),
        ("steps", 10),
        ("rows", 40),
        ("public", 120),
        ("tests", 60),
        ("teacher-steps", 25),
        ("untouched", 40),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, value in (("rate", 1e-3), ("teacher-rate", 5e-4), ("blocks", 0.5)):
        parser.add_argument(f"--{name}", type=float, default=value)
    parser.add_argument("--budget", default="2KB", help="bytes of paths for a student in a round")
    parser.add_argument("--set", type=json.loads, default={}, help="settings of LaDa for all methods, as JSON")
    parser.add_argument("--precision", default="fp32", help="`bf16` is faster where the machine computes in it")
    parser.add_argument("--name", help="name of the result, if not the suite's")
    parser.add_argument("--recorded", help="name of the result whose recorded teacher is replayed, if not the suite's")
    parser.add_argument("--predictions", type=Path, default=Path("runs/recorded-teacher"), help="folder for FedMKT's")
    parser.add_argument("--record", action="store_true", help="only record the teacher's answers")
    args = parser.parse_args()
    args.data, args.problems = (args.svamp, SVAMP) if args.svamp else (args.programs, PROGRAMS)
    args.name, args.recorded = args.name or args.problems.name, args.recorded or args.problems.name
    models = [args.teacher, *args.students]
    leave_unless_here(args.data, *models)
    quiet_libraries()
    recorded = kept(f"{args.recorded}-teacher", "answers", lambda: in_folder(lambda folder: record(folder, args)))
    if args.record:
        if "fedmkt" in args.methods:
            in_folder(lambda folder: {"predictions": len(predictions(args.predictions, folder, args)[0])})
        return
    pool = ModelPool("cpu")
    for seed in range(args.first, args.first + args.seeds):
        for method in args.methods:

            def cell(folder: Path, seed: int = seed, method: str = method) -> Any:
                return one(folder, pool, seed, method, recorded["answers"], args)

            kept(args.name, f"{method}/{seed}", lambda cell=cell: in_folder(cell))
    pairs = {
        f"{one} over {other}": f"{one} - {other}"
        for one in ("lada", "lada-fedmkt") for other in METHODS if other not in ("lada-fedmkt", one)
    }  # fmt: skip
    cells = json.loads((RESULTS / f"{args.name}.json").read_text())["cells"]
    seeds = sorted({int(key.rpartition("/")[2]) for key in cells})
    table(args.name, pairs, seeds, ("accuracy", "nats"))


if __name__ == "__main__":
    main()
