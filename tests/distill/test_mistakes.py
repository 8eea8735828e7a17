"""What cannot work is said before anything is trained, with its cure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from distill.lada_federation import PUBLIC, client, lada, question_file, scripted, true_path
from federations import build
from torch import Tensor

from h2tune.config import parse_config
from h2tune.distill.flows import Flows
from h2tune.distill.packing import pack_given
from h2tune.distill.said import Learnt
from h2tune.distill.settings import LadaSettings
from h2tune.errors import MethodError
from h2tune.methods.registry import method_of, resolve_method
from h2tune.plan import make_plan
from h2tune.protocol.codec import decode, encode

HEAD = client("s1", task="sst2", train="demo:fill?split=train&n=16&seed=1")
BARE = {"kind": "generate", "prompt": "{prompt}", "answer": "{answer}", "join": " ", "score": "number"}


def test_plan_says_which_public_questions_a_model_cannot_answer(tmp_path: Path) -> None:
    rows = [{"prompt": "word " * 2000, "answer": "1"}, {"prompt": "2 and 3 is", "answer": "5"}]
    (tmp_path / "public.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    public = {"source": str(tmp_path / "public.jsonl"), "task": BARE | {"max_new_tokens": 8}}
    warned = make_plan(lada(public=public)).warnings
    assert [w.partition(" leave")[0] for w in warned if "public questions" in w] == [
        f"{name}: 1 of 2 public questions" for name in ("big", "s1", "s2")
    ]
    assert not [w for w in make_plan(lada()).warnings if "public questions" in w]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"changes": {"teacher": "bog"}}, "there is no client 'bog'; there are: big, s1, s2"),
        ({"changes": {"teacher": ""}}, "method.teacher is missing"),
        ({"public": None}, "lada needs public questions"),
        ({"privacy": {"clip": 1, "noise": 1}}, "privacy: lada sends single texts"),
        ({"secure_aggregation": {"threshold": 2}}, "secure_aggregation: lada sends single texts"),
        ({"clients": [client("big"), HEAD]}, "s1: its model has a classification head"),
        ({"clients": [client("big", task="demo-choice"), client("s1")]}, "big is the teacher, but task demo-choice"),
        ({"public": PUBLIC | {"task": "aqua"}}, "must be of kind generate"),
        ({"public": PUBLIC | {"source": "no-such-file.jsonl"}}, "public.source: no file or folder"),
        ({"changes": {"host": {"name": "rolora"}}}, "rolora cannot be a host"),
        ({"changes": {"host": "rolora"}}, "rolora cannot be a host"),
        ({"changes": {"host": {}}}, "name: is missing; write which method LaDa is added to"),
        ({"changes": {"host": {"name": "fedit", "mu": 1}}}, "fedit has no such setting"),
        ({"changes": {"host": {"name": "lada", "teacher": "big"}}}, "lada cannot be a host"),
        ({"changes": {"budget": "many"}}, "is not a size"),
        ({"changes": {"budget": "0"}}, "must be at least 1 byte"),
        ({"changes": {"filter": "band"}}, "needs samples"),
        ({"changes": {"paths": 3, "samples": 2}}, "chosen among 2 samples"),
        ({"changes": {"anchor": 0, "contrast": 0}}, "nothing would be learnt"),
        ({"changes": {"phase": "shared"}}, "local trains nothing in it; phases there: specific"),
        ({"changes": {"host": {"name": "h2tune", "frames": "anchor", "train_factors": False}}}, "phases there: shared"),
        ({"changes": {"filter": "gup"}}, "Did you mean `gap`?"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_and_plan_shows_them(keys: dict[str, Any], says: str) -> None:
    experiment = lada(**keys)
    with pytest.raises(ValueError, match=says):
        method_of(experiment)
    assert any(says in problem for problem in make_plan(experiment).problems)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({}, "set method.samples to 4"), ({"filter": "band", "samples": 4}, "needs public questions with right answers"),
     ({"filter": "gold"}, "needs public questions with right answers")],
)  # fmt: skip
def test_right_answers_that_a_filter_needs_must_be_there(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    source = question_file(tmp_path / "bare.jsonl", drop=("answer", "gold"))
    with pytest.raises(MethodError, match=says):
        method_of(lada(changes=changes, public={"source": source, "task": BARE}))
    bare: dict[str, Any] = {"public": {"source": source, "task": BARE}}
    method_of(lada(changes={"samples": 4, "directions": "down"}, **bare))
    with pytest.warns(UserWarning, match="big may learn what smaller models are wrongly sure of"):
        method_of(lada(changes={"samples": 4}, **bare))
    assert [text for text in make_plan(lada(changes={"samples": 4}, **bare)).warnings if "wrongly sure" in text]


def test_a_single_update_leaves_no_room_for_a_phase(tmp_path: Path) -> None:
    said = "lada learns from own data and from paths: it needs training.steps of 2 or more"
    with pytest.raises(MethodError, match=said):
        build(lada(training={"steps": 1}), tmp_path)
    assert said in make_plan(lada(training={"steps": 1})).problems


def test_a_client_with_other_public_questions_is_refused_when_it_joins(tmp_path: Path) -> None:
    def another(answers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        found = []
        for name, data in answers:
            message = decode(data)
            if name == "s2" and message.kind == "join":
                message.payload.meta["public"] = "0" * 32
            found.append((name, encode(message)))
        return found

    server, _ = build(lada(rounds=1), tmp_path, another)
    server.run()
    assert "its public questions are others than the server's" in server.members["s2"].standing
    assert server.members["s1"].final


def spoil(kind: str, change: Any) -> Any:
    def apply(answers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        found = []
        for name, data in answers:
            message = decode(data)
            if name == "s2" and message.kind == kind and message.round == 2:
                change(message.payload)
            found.append((name, encode(message)))
        return found

    return apply


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("answer", lambda p: p.tensors.update(logp=p.tensors["logp"].abs() + 1)),
        ("answer", lambda p: p.tensors.pop("scores")),
        ("train", lambda p: p.meta.pop("lada/learnt")),
        ("train", lambda p: p.meta["lada/learnt"].update(learnt=-1)),
        ("train", lambda p: p.meta["lada/learnt"].update(moves=[[[1], 2.0]])),
    ],
)
def test_a_student_that_answers_nonsense_is_left_out_and_the_others_go_on(
    kind: str, change: Any, tmp_path: Path
) -> None:
    server, _ = build(lada(), tmp_path, spoil(kind, change))
    server.run()
    assert server.members["s2"].standing.startswith("stopped: ") and server.members["s1"].final and server.round == 2
    # In a round in which its answers were refused, nothing of its was allocated to anybody.
    rows = [row for row in server.method.report()["flows"]["table"] if row["round"] == 2]
    assert kind != "answer" or all("s2" not in (*row["from"], row["student"]) for row in rows)


def test_plan_and_the_declaration_say_that_paths_depend_on_private_data() -> None:
    plan = make_plan(lada())
    assert not plan.problems
    text = "\n".join(plan.leaves)
    assert "reasoning paths on public questions" in text and "they depend on private data" in text
    assert "reasoning paths" not in "\n".join(make_plan(lada(changes={"directions": "none"})).leaves)


def test_settings_say_what_they_are() -> None:
    _, settings = resolve_method({"name": "lada-published", "teacher": "t"})
    assert settings.filter == "bandit" and not settings.gate and not settings.accept and settings.anchor == 0
    assert settings.bound == math.inf
    unbounded = lada(changes={"margin": math.inf})
    again = parse_config(yaml.safe_load(unbounded.to_yaml()))  # as a run directory or a kit keeps it
    assert resolve_method(again.method)[1].bound == math.inf


def tensor_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


@pytest.mark.parametrize(
    ("host", "directions"), [("local", "both"), ("local", "down"), ("fedit", "up"), ("h2tune", "both")]
)
def test_plan_says_the_bytes_of_a_round_before_a_path_is_written(host: str, directions: str, tmp_path: Path) -> None:
    """Exactly those that travel where all questions are asked and every path is its reference answer."""
    experiment = lada(host, {"directions": directions, "filter": "all", "slice": 24}, rounds=1)
    planned, bare = (make_plan(e).clients for e in (experiment, experiment.model_copy(update={"method": host})))
    sent: dict[str, int] = {}

    def measure(answers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        messages = [(name, decode(data)) for name, data in answers]
        sent.update({name: tensor_bytes(m.payload.tensors) for name, m in messages if m.kind == "answer"})
        return answers

    server, clients = build(experiment, tmp_path, measure)
    for name, member in clients.items():
        if directions == "both" or (name == "big") == (directions == "down"):
            scripted(member, true_path)
    server.open()
    assert server.one_round() == ""
    for ours, host_alone in zip(planned, bare, strict=True):
        assert ours.bytes_up - host_alone.bytes_up == sent[ours.name]
        assert ours.bytes_down - host_alone.bytes_down == tensor_bytes(
            pack_given(server.method.flows.given(ours.name))
        )


def test_plan_says_no_more_than_the_budget_and_nothing_where_it_cannot_know(tmp_path: Path) -> None:
    rows = {c.name: c for c in make_plan(lada(changes={"budget": "50B"})).clients}
    assert rows["s1"].bytes_down == rows["big"].bytes_down == 50
    source = question_file(tmp_path / "bare.jsonl", drop=("answer", "gold"))
    bare = make_plan(lada(changes={"samples": 4}, public={"source": source, "task": BARE})).clients
    assert all(c.bytes_up is None and c.bytes_down is None for c in bare)


def test_a_student_that_refuses_every_path_is_told_of() -> None:
    flows = Flows(LadaSettings(teacher="large"), 0)
    flows.budgets = {"small": 1000.0}

    def close(number: int, learnt: int, refused: dict[str, int]) -> list[str]:
        flows.notices = []
        flows.table.append({"round": number, "student": "small", "learnt": None})
        flows.close(number, {"small": Learnt(learnt=learnt, refused=refused, kept=None)})
        return flows.notices

    (said,) = close(1, 0, {"is wrong": 2, "is one of the own held-out questions": 11})
    assert (
        said.startswith("small has learnt from no path so far")
        and "is one of the own held-out questions (11), is wrong (2)" in said
    )
    assert close(2, 0, {}) == [] and close(3, 4, {"is wrong": 1}) == [] and close(4, 0, {"is wrong": 3}) == []
