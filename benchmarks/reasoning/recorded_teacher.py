"""The teacher of suite R1, tuned and asked once, and what it says again in every run: paths for LaDa, predictions for FedMKT."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from recorded_problems import Rows
from safetensors.torch import load_file, save_file
from suite import answered
from torch import Tensor

from h2tune.client import Client
from h2tune.config import parse_config
from h2tune.distill.packing import Answers, pack_answers
from h2tune.distill.reasoner import Reasoner
from h2tune.distill.settings import LadaSettings
from h2tune.participant.base_models import ModelPool
from h2tune.participant.context import make_accelerator
from h2tune.protocol.codec import Payload
from h2tune.server import Server
from h2tune.store import RunStore
from h2tune.tasks.public import Questions, load_questions
from h2tune.transport.inprocess import InProcess


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def base(folder: Path, public: Rows, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": "recorded", "rank": 8, "device": "cpu", "blocks": args.blocks,
        "public": {"source": write(folder / "public.jsonl", public), "task": args.problems.task},
        "evaluation": {"every": 99, "n_validation": 20, "batch_size": 16},
    }  # fmt: skip


def clients_of(experiment: Any, folder: Path, models: ModelPool) -> tuple[RunStore, Any, dict[str, Client]]:
    store = RunStore(folder)
    identity, accelerator = store.create(experiment), make_accelerator(experiment, "cpu")
    clients = {
        c.name: Client(c, experiment, models, (), store.client(c.name), None, accelerator) for c in experiment.clients
    }
    return store, identity, clients


def untuned(folder: Path, method: dict[str, Any], args: argparse.Namespace) -> tuple[Server, Client, Any]:
    """A federation of the teacher alone, whose one round tunes it on its own rows."""
    own, public, _ = args.problems.fixed_rows(args.data, args.public)
    teacher = {"name": "teacher", "model": args.teacher, "task": args.problems.task, "train": write(folder / "train.jsonl", own[:-20]),
               "validation": write(folder / "validation.jsonl", own[-20:]), "test": write(folder / "test.jsonl", own[-20:-12])}  # fmt: skip
    training = {
        "steps": args.teacher_steps,
        "batch_size": 4,
        "learning_rate": args.teacher_rate,
        "precision": args.precision,
    }
    experiment = parse_config(base(folder, public, args) | {
        "rounds": 1, "method": method, "clients": [teacher], "training": training})  # fmt: skip
    store, identity, clients = clients_of(experiment, folder / "run", ModelPool("cpu"))
    server = Server(experiment, identity, list(clients), InProcess(clients), store)
    server.open()
    return server, clients["teacher"], experiment


def record(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The teacher's answers to all public questions, before it is tuned and after."""
    server, teacher, experiment = untuned(folder, {"name": "local"}, args)
    reasoner = Reasoner(teacher.context, load_questions(experiment.public), LadaSettings(teacher="teacher"))
    some = list(range(min(args.untouched, args.public)))
    untouched = reasoner.answer(some, False)
    server.one_round()
    begin = time.perf_counter()
    found = reasoner.answer(list(range(args.public)), False)
    return {
        "untouched": sum(untouched.right) / len(some), "tuned": sum(found.right) / args.public,
        "answering": round(time.perf_counter() - begin, 1), "examples": untouched.paths[:3] + found.paths[:3],
        "answers": {e.prompt: [found.paths[i], found.logp[i], found.right[i], found.scores[i].tolist()]
                    for i, e in enumerate(reasoner.questions.examples)},
    }  # fmt: skip


def record_predictions(folder: Path, args: argparse.Namespace) -> tuple[dict[str, Tensor], list[str]]:
    """What the tuned teacher sends as a client of FedMKT about all public questions with their answers, and its vocabulary."""
    server, _, experiment = untuned(folder, {"name": "fedmkt", "sentences": args.public}, args)
    with answered(experiment, args.public):
        server.one_round()
    return server.method.held["teacher"], server.method.vocabularies["teacher"]  # type: ignore[attr-defined]


def predictions(folder: Path, scratch: Path, args: argparse.Namespace) -> tuple[dict[str, Tensor], list[str]]:
    """What `record_predictions` finds; megabytes, kept in a folder of the user's.

    Raises:
        SystemExit: the folder holds those of another teacher, or of other public questions.
    """
    tensors, told = folder / "predictions.safetensors", folder / "teacher.json"
    of = [Path(args.teacher).name, args.public, args.teacher_steps, args.teacher_rate]
    if not told.is_file():
        for needed in (folder, scratch):
            needed.mkdir(parents=True, exist_ok=True)
        found, vocabulary = record_predictions(scratch, args)
        save_file(found, tensors)
        told.write_text(json.dumps({"of": of, "vocabulary": vocabulary}))
    known = json.loads(told.read_text())
    if known["of"] != of:
        sys.exit(f"{folder} holds the predictions of {known['of']}, this run needs those of {of}: name another folder")
    return load_file(tensors), known["vocabulary"]


class Replay:
    """The teacher's exchanges, from what was recorded."""

    def __init__(self, client: Client, answers: dict[str, Any]) -> None:
        self.method, self.answers = client.method, answers

    def answer(self, round: int, payload: Payload) -> Payload:
        examples = self.method.reasoner.questions.examples
        paths, logp, right, scores = zip(
            *(self.answers[examples[i].prompt] for i in self.method.items(round)), strict=True
        )
        return Payload(pack_answers(Answers(list(paths), list(logp), list(right), torch.tensor(scores))))

    def train(self, round: int, payload: Payload) -> Payload:
        return Payload(meta={"lada/learnt": {"learnt": 0, "refused": {}, "kept": None}})


class ReplayFedMkt:
    """The teacher's introduction and rounds as a client of FedMKT, from what was recorded.

    Args:
        client: the stand-in that is never trained. found: predictions of all public questions, in their order.
        slice: questions of a round.
    """

    def __init__(
        self, client: Client, found: dict[str, Tensor], vocabulary: list[str], questions: Questions, slice: int
    ):
        self.introduce, self.found, self.vocabulary = client.method.join, found, vocabulary
        self.questions, self.slice, self.seed = questions, slice, client.context.seed

    def join(self, fresh: bool = True) -> Payload:
        return Payload(meta=self.introduce(fresh).meta, texts={"vocabulary": self.vocabulary})

    def train(self, round: int, payload: Payload) -> Payload:
        items = torch.tensor(self.questions.slice(round, self.slice, self.seed))
        of, ends = self.found["places"].unbind(1)
        kept = torch.isin(of, items)
        places = torch.stack([torch.searchsorted(items, of[kept].long()), ends[kept]], 1).int()
        return Payload({
            "values": self.found["values"][kept], "ids": self.found["ids"][kept], "places": places,
            "losses": self.found["losses"][items],
        })  # fmt: skip
