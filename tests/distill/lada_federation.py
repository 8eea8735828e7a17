"""A small federation with a teacher and two students for the tests of LaDa."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from federations import ANCHORS
from torch import Tensor

from h2tune.client import Client
from h2tune.config import Experiment, parse_config
from h2tune.distill.packing import Answers, pack_answers
from h2tune.protocol.codec import Payload
from h2tune.tasks.demo_problems import demo_rows

PUBLIC = {"source": "demo:fill?split=anchors&n=24&seed=5", "task": "demo-fill"}


def client(name: str, model: str = "zoo:gpt2", seed: int = 1, n: int = 16, **other: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": model,
        "task": "demo-fill",
        "train": f"demo:fill?split=train&n={n}&seed={seed}",
        "validation": f"demo:fill?split=validation&n=8&seed={seed}",
        "test": f"demo:fill?split=test&n=8&seed={seed}",
    } | other


def lada(host: str | dict[str, Any] = "local", changes: dict[str, Any] | None = None, **keys: Any) -> Experiment:
    """Teacher `big`, students `s1` and `s2`; ``changes`` are the method's."""
    method = {"name": "lada", "host": {"name": host} if isinstance(host, str) else host, "teacher": "big", "slice": 12}
    data = {
        "name": "lada", "rounds": 2, "rank": 4, "anchors": ANCHORS, "device": "cpu", "public": PUBLIC,
        "clients": [client("big", "zoo:llama", n=40), client("s1"), client("s2", seed=2)],
        "training": {"steps": 4, "batch_size": 4}, "evaluation": {"every": 9}, "method": method | (changes or {}),
    }  # fmt: skip
    return parse_config(data | keys)


def scripted(client: Client, path: Callable[[str, str], str], nats: float = 0.02, right: bool = True) -> None:
    """Let a client answer what ``path`` makes of a question's prompt and right answer, and be sure of the references."""

    def answer(round: int, payload: Payload) -> Payload:
        method: Any = client.method
        items, questions = method.items(round), method.reasoner.questions
        paths = [path(questions.examples[i].prompt, questions.examples[i].answer) for i in items]
        scores = torch.full((len(items), 3), -1.0)
        scores[:, 0], scores[:, 1] = nats, 0.3
        logp = [-nats * len(p.encode()) for p in paths]
        flags = [int(right)] * len(items)
        method.own, method.answered = dict(zip(items, paths, strict=True)), round
        return Payload(pack_answers(Answers(paths, logp, flags, scores)))

    client.method.answer = answer  # type: ignore[attr-defined]


def true_path(prompt: str, answer: str) -> str:
    return answer


def wrong_path(prompt: str, answer: str) -> str:
    return f" {int(answer) + 1}"


def states(clients: dict[str, Client]) -> dict[str, Tensor]:
    return {f"{name}/{k}": t for name, c in clients.items() for k, t in c.method.state().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def question_file(path: Path, n: int = 24, drop: tuple[str, ...] = ()) -> str:
    """Public questions as a file, without some of its columns."""
    rows = demo_rows("anchors", "fill", n, 5)
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k not in drop}) + "\n" for row in rows))
    return str(path)
