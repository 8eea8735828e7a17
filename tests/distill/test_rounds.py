"""Rounds of LaDa in process: who is given what, what is learnt and taken back, and what the host's run would be."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distill.lada_federation import client, lada, question_file, same, scripted, states, true_path, wrong_path
from federations import build

from h2tune.distill.reasoner import Reasoner
from h2tune.errors import ClientError
from h2tune.protocol.codec import decode
from h2tune.tasks.custom import build_task


def table(server: Any, student: str | None = None) -> list[dict[str, Any]]:
    return [row for row in server.method.report()["flows"]["table"] if student in (None, row["student"])]


def events(folder: Path, kind: str = "warning") -> list[str]:
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event["text"] for event in found if event["event"] == kind]


# On every host paths flow both ways (below); that nothing else changes is quick to see on two of them.
SLOW_FEDIT, SLOW_FEDMKT = (pytest.param(name, marks=pytest.mark.slow) for name in ("fedit", "fedmkt"))


@pytest.mark.parametrize("host", ["local", SLOW_FEDIT, SLOW_FEDMKT, "h2tune"])
def test_without_directions_it_is_the_host_bit_for_bit(host: str, tmp_path: Path) -> None:
    plain, clients = build(lada(changes={"directions": "none"}).model_copy(update={"method": host}), tmp_path / "a")
    plain.run()
    wrapped, others = build(lada(host, {"directions": "none"}), tmp_path / "b")
    wrapped.run()
    assert same(states(clients), states(others)) and same(plain.method.state(), wrapped.method.state())
    assert {n: m.final for n, m in plain.members.items()} == {n: m.final for n, m in wrapped.members.items()}


@pytest.mark.parametrize("host", ["local", "fedit", "fedmkt", "h2tune"])
def test_paths_flow_both_ways_on_every_host_and_change_what_is_learnt(host: str, tmp_path: Path) -> None:
    server, clients = build(lada(host, {"accept": False}), tmp_path / "a")
    scripted(clients["big"], true_path)
    scripted(clients["s2"], true_path)
    server.run()
    assert server.round == 2
    down, up = table(server, "s1"), table(server, "big")
    assert all(row["items"] and row["from"] == ["big"] and row["learnt"] for row in down)
    assert all(row["from"] == ["s2"] for row in up if row["items"])
    plain, others = build(lada(host, {"directions": "none"}), tmp_path / "b")
    plain.run()
    assert not same({k: t for k, t in states(clients).items() if "s1" in k}, {k: t for k, t in states(others).items() if "s1" in k})  # fmt: skip


def test_a_phase_replaces_updates_and_adds_none(tmp_path: Path) -> None:
    server, clients = build(lada(changes={"accept": False, "part": 0.5}), tmp_path)
    scripted(clients["big"], true_path)
    counted: list[tuple[str, int]] = []
    for c in clients.values():
        c.context.watch = lambda name, round, phase, step, steps, loss: counted.append((phase, round))
    server.run()
    assert counted.count(("distil", 1)) % 2 == 0 and counted.count(("distil", 1)) >= 4
    assert len(counted) == 3 * 2 * 4  # clients, rounds, steps


def test_equal_models_exchange_nothing_and_the_run_is_the_hosts(tmp_path: Path) -> None:
    """T = S: the same base, no training of its own that would tell them apart in round 1."""
    changes = {"slice": 24, "explore": 0.0}
    rows = [client(name) for name in ("big", "s1", "s2")]
    server, clients = build(lada(changes=changes, clients=rows, rounds=1), tmp_path / "a")
    server.run()
    assert all(row["items"] == [] and row["learnt"] == 0 and row["kept"] is None for row in table(server))
    host, others = build(lada(clients=rows, rounds=1).model_copy(update={"method": "local"}), tmp_path / "b")
    host.run()
    assert same(states(clients), states(others))


def test_a_teacher_that_is_worse_everywhere_gives_nothing_and_is_given_paths(tmp_path: Path) -> None:
    server, clients = build(lada(changes={"accept": False}), tmp_path)
    scripted(clients["big"], wrong_path, nats=9.0, right=False)
    scripted(clients["s1"], true_path)
    server.run()
    assert all(row["items"] == [] for row in table(server, "s1") + table(server, "s2"))
    assert any(row["items"] for row in table(server, "big"))
    said = events(tmp_path)
    assert any(
        "s2 was given nothing: the teacher big answered none of the 12 public questions right" in t for t in said
    )
    assert "round 1" in next(t for t in said if "given nothing" in t)  # in the first round, not at the end


def test_wrong_answers_flagged_right_are_refused_by_the_student(tmp_path: Path) -> None:
    server, clients = build(lada(changes={"slice": 24}, rounds=1), tmp_path)
    scripted(clients["big"], wrong_path)  # it says that they are right
    server.run()
    row = table(server, "s1")[0]
    assert row["items"] and row["learnt"] == 0 and row["refused"] == {"is wrong": len(row["items"])}
    assert row["kept"] is None


@pytest.mark.parametrize(
    ("losses", "kept"),
    [((1.0, 0.9, 0.95), 1.0), ((1.0, 1.2, 0.9), 0.5), ((1.0, 1.2, 1.1), 0.0), ((1.0, 1.0, 1.0), 1.0)],
)
def test_of_a_phase_all_half_or_nothing_is_kept_whichever_validates_best(
    losses: tuple[float, ...], kept: float, tmp_path: Path
) -> None:
    """Losses before the phase, after it and half way; no choice is worse than the first."""
    server, clients = build(lada(changes={"explore": 0.0}, rounds=1), tmp_path)
    scripted(clients["big"], true_path)
    method, seen = clients["s1"].method, []
    given = iter(losses)

    def loss() -> float:
        seen.append({k: t.clone() for k, t in method.state().items() if k.startswith("adapter.")})
        return next(given)

    clients["s1"].context.validation_loss = loss  # type: ignore[method-assign]
    server.open()
    assert server.one_round() == ""
    before, after, _ = seen
    held = {k: t for k, t in method.state().items() if k.startswith("adapter.")}
    wanted = {
        k: torch.lerp(before[k], after[k], kept) if kept == 0.5 else (after if kept else before)[k] for k in held
    }
    row = table(server, "s1")[0]
    assert same(held, wanted) and row["kept"] == kept and not same(before, after)
    assert server.method.flows.budgets["s1"] == (1.25 if kept else 0.5) * 16_000


def test_wrong_paths_without_a_gate_cost_no_validation(tmp_path: Path) -> None:
    changes = {"slice": 24, "gate": False, "weight": 50.0, "directions": "down", "explore": 0.0}
    keys: dict[str, Any] = {"training": {"steps": 8, "batch_size": 8, "learning_rate": 0.02}}
    server, clients = build(lada(changes=changes, rounds=1, **keys), tmp_path)
    scripted(clients["big"], wrong_path)
    found: list[float] = []
    context = clients["s1"].context
    loss = context.validation_loss
    context.validation_loss = lambda: found.append(loss()) or found[-1]  # type: ignore[method-assign]
    server.open()
    server.one_round()
    assert table(server, "s1")[0]["learnt"] and loss() <= found[0] + 1e-6


def test_a_budget_too_small_for_one_path_is_said_at_once(tmp_path: Path) -> None:
    server, clients = build(lada(changes={"budget": "10B"}, rounds=1), tmp_path)
    scripted(clients["big"], true_path)
    server.run()
    assert any("too small for any path" in text and "Raise method.budget" in text for text in events(tmp_path))


def test_a_budget_is_too_small_where_what_is_left_beside_exploring_is(tmp_path: Path) -> None:
    server, clients = build(lada(changes={"budget": "30B", "explore": 0.9}, rounds=1), tmp_path)
    scripted(clients["big"], true_path)
    server.run()
    assert any("(less 90% for exploring) is too small for any path" in text for text in events(tmp_path))


def test_a_round_without_the_teacher_says_why_nothing_flows(tmp_path: Path) -> None:
    server, clients = build(lada(rounds=1), tmp_path)

    def fail(*args: Any) -> Any:
        raise ClientError("no disk")

    clients["big"].method.answer = fail
    server.run()
    assert "round 1: nobody was given anything: the teacher big did not take part" in events(tmp_path)


def test_a_client_that_missed_a_round_learns_from_no_public_rows_of_another(tmp_path: Path) -> None:
    """The texts of FedMKT's round are those of the round before; what was allocated longer ago stands for other texts."""
    server, clients = build(lada("fedmkt", {"accept": False}, rounds=3), tmp_path)
    scripted(clients["big"], true_path)
    method, read = clients["s1"].method, []
    train = method.host.train

    def seen(round: int, payload: Any) -> Any:
        read.append((round, list(method.host.public_rows)))
        return train(round, payload)

    method.host.train = seen
    server.open()
    server.one_round()
    assert method.taken[0] == 1 and method.taken[1]
    old = method.taken[1]
    method.taken = (0, old)  # as if it had missed round 1
    server.one_round()
    method.load_state(method.state())
    server.one_round()
    given = next(row["items"] for row in table(server, "s1") if row["round"] == 2)
    assert read[1] == (2, []) and read[2] == (3, sorted({method.items(2).index(item) for item in given}))


def test_without_right_answers_samples_that_agree_stand_in(tmp_path: Path) -> None:
    source = question_file(tmp_path / "bare.jsonl", drop=("answer", "gold"))
    task = {"kind": "generate", "prompt": "{prompt}", "answer": "{answer}", "join": " ", "score": "number"}
    experiment = lada(
        changes={"samples": 3, "explore": 0.0, "accept": False},
        public={"source": source, "task": task | {"max_new_tokens": 8}}, rounds=1,
    )  # fmt: skip
    server, clients = build(experiment, tmp_path / "run")
    server.run()
    rows = table(server)
    assert any(row["items"] for row in rows)
    assert all(row["n_student_slice"] is None for row in rows)  # there was nothing to score
    assert clients["s1"].method.reasoner.questions.answered is False
    assert sum("method.directions: down" in text for text in events(tmp_path / "run")) == 1


def test_equal_students_end_equal_and_a_missing_teacher_stops_nobody(tmp_path: Path) -> None:
    twins = [client("big", "zoo:llama", n=40), client("s1"), client("s2")]
    server, clients = build(lada(clients=twins, changes={"explore": 0.0}), tmp_path / "a")
    scripted(clients["big"], true_path)
    for name in ("s1", "s2"):
        clients[name].context.data_seed = "the same"
    server.run()
    assert table(server, "s1")[0]["items"] == table(server, "s2")[0]["items"] != []
    mine = {k.partition("/")[2]: t for k, t in states(clients).items() if k.startswith("s1/")}
    assert same(mine, {k.partition("/")[2]: t for k, t in states(clients).items() if k.startswith("s2/")})

    late = [client("big", "zoo:llama", joins=2), client("s1"), client("s2", seed=2)]
    server, clients = build(lada(clients=late), tmp_path / "b")
    server.run()
    assert [row["round"] for row in table(server, "s1")] == [2] and server.members["big"].final


def test_bytes_are_those_of_the_texts_and_figures_and_below_fedmkts(tmp_path: Path) -> None:
    sizes: dict[str, list[int]] = {"answer": [], "train": []}

    def measure(answers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        for name, data in answers:
            message = decode(data)
            if message.kind == "answer":
                paths = sum(int(n) for n in message.payload.tensors["ends"][-1:])
                sizes["answer"].append(len(data) - paths - 9 * 12 - 6 * 12)
        return answers

    server, clients = build(lada(), tmp_path / "a", measure)
    scripted(clients["big"], true_path)
    server.run()
    assert sizes["answer"] and max(sizes["answer"]) < 1500  # the header
    other, _ = build(lada().model_copy(update={"method": {"name": "fedmkt", "sentences": 12}}), tmp_path / "b")
    other.run()
    for name in server.members:
        ours, theirs = server.members[name].rounds[-1], other.members[name].rounds[-1]
        assert ours["bytes_up"] < theirs["bytes_up"] and ours["bytes_down"] < theirs["bytes_down"]


def test_canaries_in_private_text_leave_in_no_message_even_if_the_model_recites_them(tmp_path: Path) -> None:
    canary = "the zebra in room nine ordered seven purple hats on Monday"
    rows = [
        {"prompt": f"Problem: {canary} {i}.\nAnswer:", "answer": str(i + 3), "gold": str(i + 3)} for i in range(30)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = client("s1", train=str(tmp_path / "own.jsonl"), validation=None)
    seen: list[bytes] = []

    def listen(answers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        seen.extend(data for name, data in answers if name == "s1")
        return answers

    server, clients = build(lada(clients=[client("big", "zoo:llama"), own], rounds=1), tmp_path / "run", listen)
    reasoner = clients["s1"].method.reasoner
    reasoner._tries = lambda items: [[f" {canary} 5"] if i % 2 else [" 11"] for i in range(len(items))]
    server.run()
    assert len(seen) >= 4 and not any(b"zebra" in data or b"purple" in data for data in seen)
    assert reasoner.dropped["recites private text"] == 6
    assert any(b" 11" in data for data in seen)


def test_a_path_with_characters_that_the_student_cannot_write_is_dropped_for_it_and_counted(tmp_path: Path) -> None:
    server, clients = build(lada(changes={"gate": False}, rounds=1), tmp_path)
    scripted(clients["big"], lambda prompt, answer: answer + " \u4e2d\u6587")
    reasoner = clients["s1"].method.reasoner
    decode_with = reasoner.context.tokenizer.decode

    class Poor:
        """A tokenizer that knows Latin letters only."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __len__(self) -> int:
            return len(tokenizer)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return tokenizer(*args, **kwargs)

        def decode(self, ids: Any, **kwargs: Any) -> str:
            return str(decode_with(ids, **kwargs)).encode("ascii", "ignore").decode()

    tokenizer = reasoner.context.tokenizer
    reasoner.context.tokenizer = Poor()
    server.run()
    row = table(server, "s1")[0]
    assert row["refused"] == {"cannot be used": len(row["items"])} and len(row["items"]) > 0
    assert reasoner.dropped["characters that the tokenizer cannot write"] >= len(row["items"])


WORDED = {"kind": "generate", "prompt": "Question: {prompt}\nA:", "answer": " {answer}", "score": "number"}


@pytest.mark.parametrize("task", ["demo-fill", WORDED])
def test_questions_of_the_own_test_are_never_learnt_from(task: Any, tmp_path: Path) -> None:
    source = question_file(tmp_path / "public.jsonl")
    rows = [client("big", "zoo:llama"), client("s1", test=source), client("s2", seed=2)]
    public = {"source": source, "task": task}
    server, clients = build(lada(clients=rows, public=public, rounds=1), tmp_path / "run")
    scripted(clients["big"], true_path)
    server.run()
    row = table(server, "s1")[0]
    assert row["items"] and row["refused"] == {"is one of the own held-out questions": len(row["items"])}
    assert table(server, "s2")[0]["learnt"]


STEM, OWN_OPTIONS = "Which is true?", ["A)1+1=2", "B)1+1=3"]


@pytest.mark.parametrize(
    ("task", "row", "held"),
    [
        ("aqua", {"question": STEM, "options": "(A) 1+1=3 (B) 1+1=2"}, True),  # in another order
        ("aqua", {"question": STEM, "options": ["whales are fish", "whales are mammals"]}, False),
        ("gsm8k", {"question": STEM.upper()}, True),  # without options a question may be any of one stem
        (
            {"kind": "generate", "prompt": "{question} {options}", "answer": "{answer}"},
            {"question": STEM, "options": "A) whales are fish B) whales are mammals"},
            False,
        ),
    ],
)
def test_a_question_with_other_options_is_another(task: Any, row: dict[str, Any], held: bool) -> None:
    own = build_task("aqua").read({"question": STEM, "options": OWN_OPTIONS, "correct": "A"})
    public = build_task({"preset": task, "kind": "generate"} if isinstance(task, str) else task)
    data = SimpleNamespace(validation=SimpleNamespace(examples=[own]), test=SimpleNamespace(examples=[]))
    context: Any = SimpleNamespace(data=data)
    questions: Any = SimpleNamespace(examples=[public.ask(row)])
    settings: Any = None
    assert Reasoner(context, questions, settings).is_held_out(0) is held


def test_sampling_is_seeded_and_the_samples_are_counted(tmp_path: Path) -> None:
    server, clients = build(lada(changes={"samples": 4, "filter": "band"}, rounds=1), tmp_path)
    server.open()
    method, torch_state = clients["s1"].method, torch.get_rng_state()
    with clients["s1"].context.generator(1, "answer"):
        first = method.answer(1, None)
    with clients["s1"].context.generator(1, "answer"):
        again = method.answer(1, None)
    assert all(torch.equal(first.tensors[k], again.tensors[k]) for k in first.tensors)
    assert 0 < int(first.tensors["right"].max()) <= 4 and torch.equal(torch_state, torch.get_rng_state())


@pytest.mark.parametrize(
    "filter",
    [
        "random",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("teacher-loss", "student-loss", "gold")),
        "all",
        "band",
    ],
)
def test_every_filter_runs_and_those_for_comparison_spend_what_gap_would(filter: str, tmp_path: Path) -> None:
    def spent(filter: str) -> list[int]:
        changes = {"filter": filter, "samples": 2 if filter == "band" else 1, "budget": "100B", "explore": 0.0}
        server, clients = build(lada(changes=changes, rounds=1), tmp_path / filter)
        scripted(clients["big"], true_path)
        server.run()
        return [row["bytes"] for row in table(server)]

    own, gap = spent(filter), spent("gap")
    if filter in ("random", "teacher-loss", "student-loss"):
        # Not one more path would have fitted: a path has at least 13 bytes.
        assert all(0 <= g - o < 15 for o, g in zip(own, gap, strict=True))
    elif filter == "all":
        assert all(o > g for o, g in zip(own, gap, strict=True) if g)
    elif filter == "gold":
        assert own == [0, 0, 0]


def test_it_learns_beside_a_kept_prefix_with_accumulation_and_checkpointing(tmp_path: Path) -> None:
    """Own rows may start from hidden states that are known; paths are read by the whole model."""
    training = {"steps": 4, "batch_size": 4, "accumulation": 2, "checkpointing": True}
    experiment = lada(changes={"accept": False, "explore": 0.0}, training=training, blocks=0.5, rounds=1)
    server, clients = build(experiment, tmp_path)
    scripted(clients["big"], true_path)
    server.run()
    row = table(server, "s1")[0]
    assert row["learnt"] and row["kept"] == 1
    assert all(member.final for member in server.members.values())
