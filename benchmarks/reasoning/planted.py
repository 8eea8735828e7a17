"""Suite P, planted learnability: what a student can learn is known, so a filter's choice can be judged.

240 public questions of four kinds, 60 of each: everyday verbs that the untouched student gets right (*known*), six trade words (*learnable*: the teacher knows
what they mean, and the test asks for them), six other trade words that the teacher gets *wrong*, and random *codes* of
which the teacher is certain and which nobody can learn. The teacher is scripted; the student is zoo:gpt2 with 60 own rows
of everyday verbs and 12 with trade words. Four rounds of ten updates, bytes for 15 paths a round.

Run as: python benchmarks/reasoning/planted.py --seeds 5
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from suite import ABLATIONS, SMALL, in_folder, kept, table

from h2tune.client import Client
from h2tune.config import parse_config
from h2tune.distill.generation import write_paths
from h2tune.distill.packing import Answers, pack_answers
from h2tune.participant.base_models import ModelPool
from h2tune.participant.context import make_accelerator
from h2tune.protocol.codec import Payload
from h2tune.server import Server
from h2tune.store import RunStore
from h2tune.tasks.demo_problems import TRADE_WORDS
from h2tune.tasks.public import load_questions
from h2tune.transport.inprocess import InProcess
from h2tune.utils.logging import quiet_libraries
from h2tune.zoo import lexicon as lx
from h2tune.zoo.corpus import OPERATIONS, numbers, tell

NAME = "reasoning-planted"
TASK = {
    "kind": "generate",
    "prompt": "{prompt}",
    "answer": "{answer}",
    "join": " ",
    "score": "text",
    "max_new_tokens": 10,
}
KINDS = ("known", "learnable", "wrong", "code")
WORDS = list(TRADE_WORDS.items())
LEARNABLE, WRONG = WORDS[0:2] + WORDS[6:8] + WORDS[12:14], WORDS[2:4] + WORDS[8:10] + WORDS[14:16]
# Four verbs of each sign, which 60 own rows and the pretraining teach for certain.
EVERYDAY = [(verb, sign) for sign, verbs in (("+", lx.GAIN), ("-", lx.LOSE), ("*", lx.SCALE)) for verb in verbs[:4]]
METHODS = {"local": {"directions": "none"}} | SMALL | {"lada-published": {"name": "lada-published"}} | ABLATIONS


def story(rng: random.Random, verbs: list[tuple[str, str]]) -> dict[str, str]:
    verb, sign = rng.choice(verbs)
    a, b = numbers(rng)
    return {"prompt": f"Problem: {tell(rng, verb, a, b)}\nAnswer:", "answer": str(OPERATIONS[sign](a, b))}


def code(rng: random.Random) -> dict[str, str]:
    locker = f"{rng.choice(lx.NAMES)} opens locker {rng.randint(100, 999)} in the {rng.choice(lx.PLACES)}"
    letters = "".join(rng.choice("bcdfghjkmnpqrstvwxz") for _ in range(6))
    return {"prompt": f"Problem: {locker}. What is the code?\nAnswer:", "answer": letters}


def different(n: int, make: Any, taken: set[str]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    while len(found) < n:
        row = make()
        if row["prompt"] not in taken:
            taken.add(row["prompt"])
            found.append(row)
    return found


def known(n: int, rng: random.Random, taken: set[str], models: ModelPool) -> list[dict[str, str]]:
    """Questions that the untouched student answers right."""
    base, found = models.get("zoo:gpt2"), list[dict[str, str]]()
    while len(found) < n:
        rows = different(2 * n, lambda: story(rng, EVERYDAY), taken)
        prompts = base.tokenizer([row["prompt"] for row in rows])["input_ids"]
        texts = write_paths(base.model, base.tokenizer, prompts, new_tokens=10, size=64, one_line=True)
        found += [row for row, text in zip(rows, texts, strict=True) if text.strip().split("\n")[0] == row["answer"]]
    return found[:n]


def write_data(folder: Path, seed: int, models: ModelPool) -> dict[str, str]:
    """All files of a seed; returns the kind of each public question, by prompt."""
    rng, taken = random.Random(f"planted/{seed}"), set[str]()
    kinds: dict[str, str] = {}
    public: list[dict[str, str]] = []
    makers = {
        "known": lambda: story(rng, EVERYDAY),
        "learnable": lambda: story(rng, LEARNABLE),
        "wrong": lambda: story(rng, WRONG),
        "code": lambda: code(rng),
    }
    for kind, make in makers.items():
        rows = known(60, rng, taken, models) if kind == "known" else different(60, make, taken)
        kinds |= {row["prompt"]: kind for row in rows}
        public += rows
    own = different(60, makers["known"], taken) + different(12, makers["learnable"], taken)
    held = different(40, makers["known"], taken) + different(20, makers["learnable"], taken)
    parts = {"public": public, "train": own, "validation": held, "test": different(300, makers["learnable"], taken)}
    for name, rows in parts.items():
        rng.shuffle(rows)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return kinds


def experiment(folder: Path, seed: int, rate: float, changes: dict[str, Any], rounds: int = 4) -> Any:
    files = {part: str(folder / f"{part}.jsonl") for part in ("train", "validation", "test")}
    clients = [{"name": name, "model": "zoo:gpt2", "task": TASK} | files for name in ("teacher", "student")]
    clients[0] |= {"n_test": 8}  # nobody reads the scripted teacher's score
    # Bytes for 15 learnable paths a round (3 of text, 12 beside it); no exploration.
    method = {
        "name": "lada",
        "teacher": "teacher",
        "directions": "down",
        "slice": 60,
        "budget": "225B",
        "explore": 0.0,
    }
    return parse_config(
        {
            "name": "planted", "seed": seed, "rounds": rounds, "rank": 8, "clients": clients, "device": "cpu",
            "anchors": "demo", "public": {"source": str(folder / "public.jsonl"), "task": TASK},
            "training": {"steps": 10, "batch_size": 16, "learning_rate": rate},
            "evaluation": {"every": 9, "n_validation": 60}, "method": method | changes,
        }
    )  # fmt: skip


class Script:
    """The teacher's answers: certain of everything, right on all but the planted wrong kind."""

    def __init__(self, client: Client, kinds: dict[str, str]) -> None:
        self.client, self.kinds = client, kinds
        self.questions = load_questions(client.context.experiment.public)

    def answer(self, round: int, payload: Payload) -> Payload:
        items = self.client.method.items(round)
        paths, logp, right, scores = [], [], [], torch.full((len(items), 3), -1.0)
        for place, item in enumerate(items):
            example = self.questions.examples[item]
            wrong = self.kinds[example.prompt] == "wrong"
            path = f" {int(example.gold) + 1}" if wrong else example.answer
            paths.append(path)
            logp.append(-0.05 * len(path.encode()))
            right.append(int(not wrong))
            scores[place, 0], scores[place, 1] = (1.5 if wrong else 0.05), 0.3
        return Payload(pack_answers(Answers(paths, logp, right, scores)))

    def train(self, round: int, payload: Payload) -> Payload:
        return Payload(meta={"lada/learnt": {"learnt": 0, "refused": {}, "kept": None}})


def one(folder: Path, seed: int, rate: float, changes: dict[str, Any], rounds: int = 4) -> dict[str, Any]:
    """Accuracy on learnable questions, and the kinds of what was allocated."""
    quiet_libraries()
    models = ModelPool("cpu")
    kinds = write_data(folder, seed, models)
    run = experiment(folder, seed, rate, changes, rounds)
    store = RunStore(folder / "run")
    identity, accelerator = store.create(run), make_accelerator(run, "cpu")
    clients = {c.name: Client(c, run, models, (), store.client(c.name), None, accelerator) for c in run.clients}
    if changes.get("directions") != "none":
        script = Script(clients["teacher"], kinds)
        clients["teacher"].method.answer, clients["teacher"].method.train = script.answer, script.train  # type: ignore[method-assign]
    server = Server(run, identity, list(clients), InProcess(clients), store)
    server.run()
    final = server.members["student"].final
    assert final is not None
    found: dict[str, Any] = {"accuracy": final["metric"], "nats": final["nats"]}
    table = server.method.report().get("flows", {}).get("table", [])
    rows = [row for row in table if row["student"] == "student"]
    if rows:
        examples = load_questions(run.public).examples
        count = {k: sum(kinds[examples[i].prompt] == k for row in rows for i in row["items"]) for k in KINDS}
        total = sum(count.values())
        found |= {"allocated": count, "share": count["learnable"] / total if total else None,
                  "by_round": [[sum(kinds[examples[i].prompt] == k for i in row["items"]) for k in KINDS] for row in rows],
                  "bytes": [row["bytes"] for row in rows], "learnt": [row["learnt"] for row in rows],
                  "kept": [row["kept"] for row in rows]}  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate, the same for all methods")
    parser.add_argument(
        "--weight", type=float, help="another weight of what is learnt from paths, the same for all methods"
    )
    parser.add_argument("--first", type=int, default=0, help="first seed; the rate was chosen on seeds from 100 on")
    parser.add_argument("--name", default=NAME, help="name of the result")
    args = parser.parse_args()
    seeds = range(args.first, args.first + args.seeds)
    weight = {} if args.weight is None else {"weight": args.weight}
    for seed in seeds:
        for method in args.methods:

            def make(seed: int = seed, method: str = method) -> dict[str, Any]:
                return in_folder(lambda folder: one(folder, seed, args.rate, METHODS[method] | weight))

            kept(args.name, f"{method}/{seed}", make, args)
    table(args.name, {f"lada over {m}": f"lada - {m}" for m in METHODS if m != "lada"}, seeds, ("accuracy", "nats"))
    cells = json.loads((Path(__file__).parents[1] / "results" / f"{args.name}.json").read_text())["cells"]
    for method in args.methods:
        own = [cell for key, cell in cells.items() if key.rpartition("/")[0] == method]
        shares = [cell["share"] for cell in own if cell.get("share") is not None]
        share = f"learnable {np.mean(shares):.2f}" if shares else ""
        print(
            f"{method:16s} accuracy {np.mean([c['accuracy'] for c in own]):.3f}  nats {np.mean([c['nats'] for c in own]):.3f}  {share}"
        )


if __name__ == "__main__":
    main()
