"""What `plan` says before anything is trained."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from federations import build, small

from h2tune.config import ClientConfig, Experiment, load_config
from h2tune.federation import run
from h2tune.frames.sources import load_anchors
from h2tune.plan import make_plan


@pytest.mark.parametrize("method", ["fedit", "ffa", "fedsa", "pfedlora", "colora", "local", "h2tune"])
def test_planned_bytes_are_those_that_travel(method: str, tmp_path: Path) -> None:
    """From shapes alone, `plan` says what a round sends; the message's bounded header comes on top."""
    config = small(same_model=True, rounds=1, method=method, training={"steps": 1, "batch_size": 2}, rank=4)
    planned = {c.name: c.bytes_up for c in make_plan(config).clients}
    server, clients = build(config, tmp_path / method)
    server.open()
    server.one_round()
    for name, member in server.members.items():
        sent = clients[name].method.pack() if hasattr(clients[name].method, "pack") else {}
        tensors = sum(t.numel() * t.element_size() for t in sent.values())
        if method == "pfedlora":
            tensors = 4 * 4 * 4
        elif method == "h2tune":
            tensors -= sent["pairs"].numel()
        elif method == "local":
            tensors = 0
        assert planned[name] == tensors
        assert member.rounds[-1]["bytes_up"] > tensors


@pytest.mark.parametrize("method", ["flexlora", "flora", "hetlora", "fedex"])
def test_planned_bytes_of_clients_that_keep_less(method: str, tmp_path: Path) -> None:
    config = small(same_model=True, rounds=1, method=method, training={"steps": 1, "batch_size": 2}, rank=4)
    rows = [c.model_copy(update={"keep": keep}) for c, keep in zip(config.clients, (0.5, 1.0), strict=True)]
    config = config.model_copy(update={"clients": rows})
    planned = {c.name: c for c in make_plan(config).clients}
    assert [row.rank for row in planned.values()] == ([4, 4] if method == "fedex" else [2, 4])
    server, clients = build(config, tmp_path / "run")
    server.open()
    server.one_round()
    for name, client in clients.items():
        assert planned[name].bytes_up == sizes(client.method.pack())
        assert planned[name].bytes_down == sizes(server.method.download(name).tensors)


@pytest.mark.parametrize("method", ["fedit", "flora", "hetlora", "fedex", "rolora"])
def test_a_client_that_nobody_shares_a_base_with_is_planned_to_send_nothing(method: str, tmp_path: Path) -> None:
    config = small(3, rounds=1, method=method, training={"steps": 1, "batch_size": 2}, rank=4)
    rows = [
        c.model_copy(update={"model": f"zoo:{m}"})
        for c, m in zip(config.clients, ("gpt2", "llama", "llama"), strict=True)
    ]
    config = config.model_copy(update={"clients": rows})
    planned = {c.name: c for c in make_plan(config).clients}
    server, clients = build(config, tmp_path / "run")
    server.open()
    server.one_round()
    for name, client in clients.items():
        assert planned[name].bytes_up == sizes(client.method.pack())
    assert planned["c0"].bytes_up == planned["c0"].bytes_down == 0 < planned["c1"].bytes_up
    unknown = [*rows, rows[0].model_copy(update={"name": "late", "model": "-"})]  # whose base may be this one
    assert make_plan(config.model_copy(update={"clients": unknown})).clients[0].bytes_up


@pytest.mark.parametrize("method", ["colora", {"name": "colora", "relevance": "uniform", "sentences": 25}, "fedsb"])
@pytest.mark.parametrize("models", ["zoo:llama zoo:gpt2 zoo:qwen", "zoo:gpt2 zoo:llama zoo:llama"])
def test_planned_bytes_of_a_set_up_by_one_for_others(method: Any, models: str, tmp_path: Path) -> None:
    """Co-LoRA's guide comes from one client and goes to other bases, Fed-SB's bases go to all of a base."""
    config = small(3, rounds=1, method=method, training={"steps": 1, "batch_size": 2}, rank=4)
    rows = [c.model_copy(update={"model": m}) for c, m in zip(config.clients, models.split(), strict=True)]
    config = config.model_copy(update={"clients": rows})
    planned = {c.name: c for c in make_plan(config).clients}
    moved: dict[str, dict[str, int]] = {c.name: {"up": 0, "down": 0} for c in rows}
    server, clients = build(config, tmp_path / "run", anchors=load_anchors(config.anchors, None))
    for name, client in clients.items():
        for action in ("join", "describe", "welcome"):
            setattr(client.method, action, counted(getattr(client.method, action), moved[name]))
    server.open()
    server.one_round()
    for name, client in clients.items():
        up, down = planned[name].setup_bytes_up or 0, planned[name].setup_bytes_down or 0
        assert (up, down) == (moved[name]["up"], moved[name]["down"])
        assert planned[name].bytes_up == sizes(client.method.pack())


def counted(action: Any, moved: dict[str, int]) -> Any:
    """A client's action that adds up the bytes of the tensors that it is given and gives."""

    def counting(*given: Any) -> Any:
        answer = action(*given)
        moved["up"] += sizes(answer.tensors)
        moved["down"] += sum(sizes(payload.tensors) for payload in given)
        return answer

    return counting


@pytest.mark.parametrize(
    ("mask", "keep"),
    [("dims", 1.0), ("dims", 0.5), ("entries", 0.5), pytest.param("entries", 1.0, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "wire",
    [
        {"dtype": "bfloat16", "download": "bfloat16"},
        {"dtype": "int8"},
        {"top_k": 0.1},
        {"dtype": "int8", "top_k": 0.01},
    ],
    ids=str,
)
def test_planned_bytes_of_smaller_messages(wire: dict, mask: str, keep: float, tmp_path: Path) -> None:
    config = small(
        rounds=1, method={"name": "h2tune", "mask": mask}, training={"steps": 1, "batch_size": 2}, wire=wire
    )
    config = config.model_copy(update={"clients": [c.model_copy(update={"keep": keep}) for c in config.clients]})
    planned = {c.name: c for c in make_plan(config).clients}
    server, clients = build(config, tmp_path / "run")
    server.open()
    down = {name: sizes(server.method.download(name).tensors) for name in clients}
    server.one_round()
    for name, client in clients.items():
        assert planned[name].bytes_up == sizes(client.method.pack())
        assert planned[name].bytes_down == down[name]


def test_planned_bytes_of_a_client_whose_share_follows_from_its_budget(tmp_path: Path) -> None:
    config = small(rounds=1, rank=8, training={"steps": 1, "batch_size": 2})
    row = config.clients[0].model_dump() | {"keep": "auto", "budget": {"upload": "5KB", "step_ms": 1e6}}
    config = config.model_copy(update={"clients": [ClientConfig.model_validate(row), *config.clients[1:]]})
    plan = make_plan(config)
    first = plan.clients[0]
    assert any(text.startswith("c0: budget.step_ms is measured") for text in plan.warnings)
    server, clients = build(config, tmp_path / "run")
    server.open()
    down = sizes(server.method.download("c0").tensors)
    server.one_round()
    assert clients["c0"].context.keep == 0.5
    assert (first.rank, first.bytes_up, first.bytes_down) == (4, sizes(clients["c0"].method.pack()), down)


def test_a_budget_that_is_too_small_is_among_the_mistakes() -> None:
    config = small(rounds=1)
    row = config.clients[0].model_dump() | {"keep": "auto", "budget": {"upload": "10B"}}
    plan = make_plan(config.model_copy(update={"clients": [ClientConfig.model_validate(row), *config.clients[1:]]}))
    assert [text for text in plan.problems if "c0: the budget is too small for this model: rank 1 needs" in text]


def sizes(tensors: dict) -> int:
    return sum(t.nbytes for name, t in tensors.items() if name != "pairs")


def test_a_coordinator_may_not_know_models_and_data() -> None:
    experiment = small()
    unknown = experiment.clients[0].model_copy(update=dict.fromkeys(("model", "train", "test", "validation"), "-"))
    found = make_plan(experiment.model_copy(update={"clients": [unknown, experiment.clients[1]]}))
    assert not found.problems and found.clients[0].blocks is None and found.clients[1].bytes_up


def test_a_method_for_equal_models_is_told_that_they_differ() -> None:
    found = make_plan(small(method="fedit"))
    assert any("fedit: this method averages LoRA factors" in problem for problem in found.problems)
    assert not make_plan(small(method="fedit", same_model=True)).problems


@pytest.mark.parametrize(("method", "said"), [
    ({"frames": "glossary", "slots": ["o"]}, "c0: frames: glossary needs `practice:`"),
    ({"frames": "words"}, "frames: words needs `private:`"),
    ({"frames": "effect", "slots": ["o", "q"]}, "method.slots: frames: effect act on o and down, not on q"),
    ({"frames": "words", "private": 4}, "c0: frames: words needs a task that chooses among labels, not generate"),
])  # fmt: skip
def test_frames_that_a_client_cannot_have_are_among_the_mistakes(method: dict[str, Any], said: str) -> None:
    problems = make_plan(small(method={"name": "h2tune"} | method)).problems
    assert sum(problem.startswith(said) for problem in problems) == 1, problems  # what is every client's once


def test_a_plan_and_a_run_say_that_test_rows_ask_otherwise_than_training_rows(tmp_path: Path) -> None:
    rows = [{"instruction": f"count {n}", "output": f"{n}"} for n in range(60)]
    other = [{"prompt": f"number {n}", "answer": f"{n}"} for n in range(30)]
    alike = [{"prompt": f"number {n}", "completion": f"{n}"} for n in range(90, 120)]
    for name, part in (("train", rows), ("other", other), ("alike", alike), ("mixed", rows[:20] + other)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    base = small(clients=1, rounds=1, method="local", training={"steps": 1, "batch_size": 2})

    def of(train: str, test: str) -> Experiment:
        files = {
            "train": str(tmp_path / f"{train}.jsonl"),
            "test": str(tmp_path / f"{test}.jsonl"),
            "validation": None,
        }
        task = {"kind": "generate", "max_new_tokens": 2}
        return base.model_copy(update={"clients": [base.clients[0].model_copy(update=files | {"task": task})]})

    said = (
        "c0: 30 of 30 test rows are read by (prompt -> answer), training rows by (instruction -> output): the model is asked"
        " otherwise than it is trained"
    )
    assert said in make_plan(of("train", "other")).warnings
    for train, test in (("other", "alike"), ("mixed", "other")):
        assert not [text for text in make_plan(of(train, test)).warnings if "read by" in text]
    run(of("train", "other"), tmp_path / "run")
    assert said in (tmp_path / "run" / "events.jsonl").read_text()


def test_what_fedmkt_cannot_train_is_among_the_mistakes() -> None:
    config = small(method="fedmkt", training={"steps": 1, "batch_size": 2})
    said = "fedmkt learns from public and from own text: it needs training.steps of 2 or more"
    assert make_plan(config).problems == [said]
    head = {"task": "sst2", "train": "-", "validation": "-", "test": "-"}
    rows = [config.clients[0].model_copy(update=head), config.clients[1]]
    config = small(method="fedmkt").model_copy(update={"clients": rows})
    assert "c0: fedmkt exchanges predictions of words, a classification head has none" in make_plan(config).problems


def test_no_mistake_is_cut_off() -> None:
    wrong = {"name": "h2tune"} | {f"key{n}": n for n in range(6)}
    problems = make_plan(small().model_copy(update={"method": wrong})).problems
    assert all(any(f"key{n}" in problem for problem in problems) for n in range(6))


def test_public_texts_that_are_missing_are_among_the_mistakes() -> None:
    experiment = small(method={"name": "h2tune", "frames": "words", "private": 4})
    rows = [experiment.clients[0].model_copy(update={"practice": "nowhere.txt"}), experiment.clients[1]]
    found = make_plan(experiment.model_copy(update={"clients": rows}))
    assert (
        "c0: practice: there is no file nowhere.txt; frames: words needs public texts, one a line." in found.problems
    )


def test_a_plan_says_what_the_noise_of_differential_privacy_does() -> None:
    """In its own words, and with this federation's numbers: three clients drown, the sentence says how many would not."""
    plan = make_plan(small(clients=3, weights="uniform", privacy={"clip": 0.5, "noise": 1.0}))
    said = plan.privacy[-1]
    assert said.startswith("with 3 clients the noise on a mean of ") and "the mean update at most 0.5 (`clip`)" in said
    entries = max(row.bytes_down or 0 for row in plan.clients) // 4
    assert f"from about {math.ceil(2 * entries**0.5):,} clients a round on" in said


@pytest.mark.parametrize(("heads", "alone"), [([0], False), ([0, 1], True), ([], False)])
def test_a_plan_says_who_shares_nothing(heads: list[int], alone: bool) -> None:
    config = small(clients=3, rounds=1, method={"name": "h2tune", "frames": "effect"})
    head = {"kind": "classify", "prompt": "{question}", "answer": "{answer}", "labels": ["a", "b"]}
    clients = [c.model_copy(update={"task": head} if i in heads else {}) for i, c in enumerate(config.clients)]
    warnings = make_plan(config.model_copy(update={"clients": clients})).warnings
    said = [text for text in warnings if "shares nothing" in text]
    assert len(said) == bool(heads) and any("every client trains alone" in text for text in said) is alone


def test_planned_bytes_of_a_client_that_shares_nothing(tmp_path: Path) -> None:
    """A classification head predicts no words: in frames by effect its model neither sends nor gets a core."""
    config = small(clients=3, rounds=2, method={"name": "h2tune", "frames": "effect"}, rank=2)
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"note {i},{'good' if i % 2 else 'bad'}\n" for i in range(60)))
    head = {"kind": "classify", "prompt": "{text}", "answer": "{label}", "labels": ["good", "bad"]}
    data = {"task": head, "train": str(rows), "test": str(rows), "validation": None, "n_test": 4}
    clients = [c.model_copy(update=data) if i == 0 else c for i, c in enumerate(config.clients)]
    config = config.model_copy(update={"clients": clients})
    planned = {c.name: c for c in make_plan(config).clients}
    server, built = build(config, tmp_path / "run")
    server.open()
    server.one_round()
    server.one_round()
    for name, client in built.items():
        assert planned[name].bytes_up == sizes(client.method.pack())
        assert planned[name].bytes_down == sizes(server.method.download(name).tensors)
        assert planned[name].bytes_up or name == "c0"
    assert (planned["c0"].bytes_up, planned["c0"].bytes_down, planned["c0"].setup_bytes_up) == (0, 0, None)


def test_a_plan_counts_test_rows_that_are_trained_on(tmp_path: Path) -> None:
    lines = [f'{{"question": "What is {i} + 1?", "answer": "{i + 1}"}}\n' for i in range(60)]
    rows, tests = tmp_path / "rows.jsonl", tmp_path / "tests.jsonl"
    rows.write_text("".join(lines))
    tests.write_text("".join(lines[:30]))
    config = small(rounds=1, method="local")
    update = {"task": "gsm8k", "train": str(rows), "test": str(tests), "validation": None}
    clients = [config.clients[0].model_copy(update=update), *config.clients[1:]]
    warnings = make_plan(config.model_copy(update={"clients": clients})).warnings
    assert [text for text in warnings if "30 test examples occur in its training data" in text]


def test_a_plan_warns_of_answers_that_cannot_be_written_and_of_validation_rows_used_elsewhere(tmp_path: Path) -> None:
    parts = {"train": (0, 40), "validation": (30, 50), "test": (45, 60)}
    for part, (first, last) in parts.items():
        lines = [
            f'{{"q": "What is {i} + 1?", "a": "{i} plus one is {i + 1}, no more and no less"}}\n'
            for i in range(first, last)
        ]
        (tmp_path / f"{part}.jsonl").write_text("".join(lines))
    task = {"kind": "generate", "prompt": "{q}", "answer": " {a}", "max_new_tokens": 2}
    config = small(rounds=1, method="local")
    update = {"task": task} | {part: str(tmp_path / f"{part}.jsonl") for part in parts}
    clients = [config.clients[0].model_copy(update=update), *config.clients[1:]]
    said = " | ".join(make_plan(config.model_copy(update={"clients": clients})).warnings)
    assert "10 of 20 validation examples are also in train" in said
    assert "5 of 20 validation examples are also in test" in said
    assert "max_new_tokens: 2 is less than every reference answer" in said


def test_a_plan_knows_that_a_method_needs_several_clients() -> None:
    lada = {"name": "lada", "teacher": "c0", "slice": 4}
    assert "method lada needs 2 clients or more; clients here: 1" in make_plan(small(clients=1, method=lada)).problems
    alone = small(clients=1, method=lada | {"directions": "none"})
    assert not any("clients or more" in text for text in make_plan(alone).problems)


@pytest.mark.parametrize(
    ("method", "unread"),
    [
        ("fedit", "depth, keep (c1), practice (c2), public"),
        ("hetlora", "depth, practice (c2), public"),
        ("h2tune", "practice (c2), public"),
        ({"name": "h2tune", "frames": "glossary"}, "public"),
        ({"name": "lada", "teacher": "c0", "slice": 4}, "depth, keep (c1), practice (c2)"),
        (
            {"name": "lada", "teacher": "c0", "slice": 4, "host": {"name": "h2tune", "frames": "anchor"}},
            "practice (c2)",
        ),
    ],
    ids=str,
)
def test_a_plan_names_keys_that_the_method_does_not_read(method: Any, unread: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "1 + 1?", "answer": "It is 2."}\n' * 4)
    task = {"kind": "generate", "prompt": "{question}\n", "answer": "{answer}", "score": "number"}
    public = {"source": str(tmp_path / "q.jsonl"), "task": task}
    config = small(clients=3, method=method, depth=2, public=public)
    changes: list[dict[str, Any]] = [{}, {"keep": 0.5}, {"practice": "nowhere.txt"}]
    clients = [c.model_copy(update=change) for c, change in zip(config.clients, changes, strict=True)]
    warnings = make_plan(config.model_copy(update={"clients": clients})).warnings
    said = [text for text in warnings if text.startswith("without effect")]
    name = method if isinstance(method, str) else method["name"]
    assert said == ([f"without effect with method {name}: {unread}"] if unread else [])


def test_the_files_that_a_user_copies_first_share(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    readme = re.findall(r"^```yaml\n(.*?)^```", (root / "README.md").read_text(encoding="utf-8"), re.M | re.S)[0]
    (tmp_path / "readme.yaml").write_text(readme)
    for path in (tmp_path / "readme.yaml", root / "src" / "h2tune" / "template.yaml"):
        assert not [text for text in make_plan(load_config(path)).warnings if "shares nothing" in text], path


def test_a_methods_rate_that_some_clients_do_not_take_is_named() -> None:
    config = small(clients=3, method="fedit", methods={"local": {"learning_rate": 0.05}, "ffa": {"rank": 2}})
    assert not [text for text in make_plan(config).warnings if "without effect" in text]
    clients = [c.model_copy(update={"learning_rate": 0.001} if c.name != "c1" else {}) for c in config.clients]
    said = [t for t in make_plan(config.model_copy(update={"clients": clients})).warnings if "learning_rate" in t]
    told = "methods.local.learning_rate is without effect for c0, c2: a learning_rate of the client's own comes first;"
    assert said == [f"{told} leave one of the two out"]
