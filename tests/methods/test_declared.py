"""Every message of every method holds only what is declared to leave, and `plan` and the report show that list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import exchange_methods  # noqa: F401 - registers the methods of several exchanges
import pytest
from federations import build, small

from h2tune.config import Experiment
from h2tune.methods.leaving import as_lines, undeclared, what_leaves
from h2tune.methods.registry import known_methods
from h2tune.plan import make_plan
from h2tune.protocol.codec import decode

OPTIONS: dict[str, dict[str, Any]] = {
    "h2tune, words": {"method": {"name": "h2tune", "frames": "random", "mask": "entries"}, "clients": 3},
    "h2tune, int8 and top-k": {"method": "h2tune", "wire": {"dtype": "int8", "top_k": 0.3}},
    "h2tune, privacy": {"method": "h2tune", "weights": "uniform", "privacy": {"clip": 1, "noise": 1}},
    "h2tune, secure aggregation": {"method": "h2tune", "clients": 3, "secure_aggregation": {"threshold": 3}},
    "h2tune, effect": {"method": {"name": "h2tune", "frames": "effect"}},
    "h2tune, curves": {"method": "h2tune", "evaluation": {"curves": True}},
}
METHODS = {
    name: {"method": {"name": name, "sentences": 4} if name == "fedmkt" else name}
    for name in known_methods()
    if not name.startswith(("toy", "lada"))
}
PUBLIC = {"source": "demo:fill?split=anchors&n=12&seed=5", "task": "demo-fill"}
OPTIONS |= {
    f"{name}, {host}": {
        "method": {"name": name, "teacher": "c0", "host": {"name": host}, "slice": 6},
        "public": PUBLIC,
    }
    for name, host in (("lada", "fedit"), ("lada", "h2tune"), ("lada-published", "local"))
}


def experiment(changes: dict[str, Any]) -> Experiment:
    training = {"steps": 2, "batch_size": 2}
    return small(**({"clients": 2, "same_model": True, "rounds": 2, "training": training} | changes))


@pytest.mark.parametrize("changes", [*METHODS.values(), *OPTIONS.values()], ids=[*METHODS, *OPTIONS])
def test_only_what_is_declared_leaves(changes: dict[str, Any], tmp_path: Path) -> None:
    config = experiment(changes)
    declared, seen = what_leaves(config), set()

    def record(answers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        for _, data in answers:
            message = decode(data)
            names = message.payload.names()
            assert not undeclared(declared, message.kind, names), f"{message.kind}: not declared"
            seen.update((message.kind, name) for name in names)
        return answers

    server, _ = build(config, tmp_path, record)
    server.run()
    assert server.round == 2 and all(member.final for member in server.members.values())
    # What is declared and never seen would be a list that says too much.
    silent = [
        entry for entry in declared if not any(kind in (entry.kind, "*") or entry.kind == "*" for kind, _ in seen)
    ]
    assert [entry.kind for entry in silent] == ["failure"]


def test_an_undeclared_name_is_found() -> None:
    declared = what_leaves(small(method="fedit"))
    assert undeclared(declared, "train", {"0.A", "12.B", "report"}) == set()
    assert undeclared(declared, "train", {"0.A", "logits"}) == {"logits"}
    assert undeclared(declared, "describe", {"0.A"}) == {"0.A"}


@pytest.mark.parametrize(
    ("method", "says", "not_said"),
    [
        ("fedit", "the LoRA factors A and B of every adapted map", "core S"),
        ("ffa", "the LoRA factors B of every adapted map", "A and B"),
        ("colora", "gradient of a small common model on private rows", "core S"),
        ("fedmkt", "largest logits at every position of public sentences", "core S"),
        ("fedsb", "made from gradients on this client's private rows", "left factors"),
        ("local", "scores of the untouched model", "core S"),
        ("h2tune-unshared", "left factors of the base model's activations", "core S"),
        ("h2tune", "entries of the core S", "LoRA factors"),
    ],
)
def test_plan_says_what_this_method_sends(method: str, says: str, not_said: str) -> None:
    lines = make_plan(small(method=method, same_model=True)).leaves
    assert lines == as_lines(what_leaves(small(method=method, same_model=True)))
    assert any(says in line for line in lines) and not any(not_said in line for line in lines)


def test_secure_aggregation_is_said() -> None:
    lines = make_plan(small(3, secure_aggregation={"threshold": 3})).leaves
    assert any("under masks: the server can read only the sum" in line for line in lines)
