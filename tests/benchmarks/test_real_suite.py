"""The suite on real models: whose rows are whose, and the share of the pooled gain."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from h2tune.frames.registry import OWN

REAL = Path(__file__).parents[2] / "benchmarks" / "real"


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REAL))
    monkeypatch.syspath_prepend(str(REAL.parent))
    import suite

    yield suite
    for name in ("suite", "prepare", "common", "turned", "labels"):
        sys.modules.pop(name, None)
    del OWN["turned"], OWN["labels"]


def arguments(folder: Path) -> argparse.Namespace:
    for task in ("SST-2", "QQP", "MRPC"):
        (folder / task).mkdir()
        for part, count in (("train", 400), ("dev", 30)):
            lines = [f"{task} {part} {i}\t{i % 2}" for i in range(count)]
            (folder / task / f"{part}.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
    names = ["smollm", "gemma", "qwen"]
    return argparse.Namespace(data=folder, out=folder / "out", families=names, test_rows=10, tuning=False, rates={})


def rows(path: str) -> set[str]:
    with open(path, encoding="utf-8") as file:
        return {row["sentence"] for row in csv.DictReader(file, delimiter="\t")}


def test_no_row_has_two_owners_and_pooled_holds_them_all(suite: Any, tmp_path: Path) -> None:
    args = arguments(tmp_path)
    clients = suite.split(args, "sst2-32", 0)
    parts = [rows(client[part]) for client in clients for part in ("train", "validation")]
    assert [len(part) for part in parts] == [32, 20] * 3 and len(set().union(*parts)) == 3 * 52
    assert rows(clients[0]["pooled"]) == set().union(*(rows(client["train"]) for client in clients))
    anchors = {f"SST-2 train {i}" for i in range(200, 400)}
    assert not anchors & set().union(*parts)
    assert suite.split(args, "sst2-32", 1)[0]["train"] != clients[0]["train"]
    assert rows(suite.split(args, "sst2-32", 1)[0]["train"]) != rows(clients[0]["train"])


def test_clients_of_different_tasks_pool_nothing(suite: Any, tmp_path: Path) -> None:
    for client in suite.split(arguments(tmp_path), "different-32", 0):
        assert rows(client["pooled"]) == rows(client["train"])


def test_a_rate_is_chosen_by_training_rows_that_nobody_holds(suite: Any, tmp_path: Path) -> None:
    args = arguments(tmp_path)
    vars(args).update(tuning=True)
    clients = suite.split(args, "sst2-32", 0)
    held = set().union(*(rows(client[part]) for client in clients for part in ("train", "validation")))
    (scored,) = {client["test"] for client in clients}
    assert len(rows(scored)) == 10 and not rows(scored) & (held | rows(str(tmp_path / "SST-2" / "dev.tsv")))
    vars(args).update(test_rows=100)
    with pytest.raises(SystemExit, match="too few training rows"):
        suite.split(args, "sst2-32", 0)


def test_the_share_of_the_pooled_gain_leaves_out_what_pooling_does_not_help(suite: Any) -> None:
    assert suite.share([(0.8, 0.7, 0.9), (0.7, 0.7, 0.7), (0.9, 0.8, 0.7)]) == pytest.approx(0.5)
    assert suite.share([(0.8, 0.7, 0.6)]) is None


def test_every_method_has_as_many_updates(suite: Any, tmp_path: Path) -> None:
    args = arguments(tmp_path)
    vars(args).update(
        models=tmp_path, rounds=30, steps=1, batch=8, rate=3e-4, core_rate=2e-2, device="cpu", precision="fp32", set={}
    )
    vars(args).update(rates={"gemma": 1e-3})
    made = {method: suite.experiment(args, "sst2-32", method, 0) for method in suite.METHODS}
    assert {tuple(c.learning_rate for c in e.clients) for e in made.values()} == {(3e-4, 1e-3, 3e-4)}
    assert {m: e.rounds * e.training.steps for m, e in made.items()} == dict.fromkeys(suite.METHODS, 30)
    assert made["fedmkt"].training.steps > 1  # a round learns from public and from own text


def cell(suite: Any, args: argparse.Namespace, method: str, seed: int, **more: Any) -> None:
    """A cell in which a client got a share right that tells its seed."""
    client = {"metric": seed / 10, "nats": 0.7}
    found = {"commit": "c", "machine": {"gpu": None}, "date": f"day {seed}", "clients": {"a": client}, "seconds": 1}
    path = suite.cell(args, "sst2-32", method, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found | more))


def asked(folder: Path, **options: Any) -> argparse.Namespace:
    given = {"out": folder, "settings": ["sst2-32"], "methods": ["local", "bias"], "first": 0, "seeds": None}
    return argparse.Namespace(**given | {"write": folder / "table.json", "set": {}, "rate": 3e-4, "jobs": 1} | options)


def test_rows_stand_beside_each_other_over_the_same_seeds(
    suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, seeds in (("local", (0, 1, 2, 12)), ("bias", (1, 2, 3, 12))):
        for seed in seeds:
            cell(suite, asked(tmp_path), method, seed)
    suite.table(asked(tmp_path, seeds=10))
    assert "means over the seeds that all rows have: 1, 2" in capsys.readouterr().out
    rows = json.loads((tmp_path / "table.json").read_text())["sst2-32"]
    assert rows["local"]["right"][0] == rows["bias"]["right"][0] == pytest.approx(0.15)
    assert rows["bias"]["by_seed"].keys() == {"1", "2", "3"} and rows["bias"]["over local"][0] == 0
    suite.table(asked(tmp_path, first=3))
    assert json.loads((tmp_path / "table.json").read_text())["sst2-32"]["local"]["seeds"] == [12]


def test_cells_of_other_settings_are_refused(suite: Any, tmp_path: Path) -> None:
    args = asked(tmp_path, methods=["local"], seeds=2)
    cell(suite, args, "local", 0)  # older ones do not say what they were made with
    suite.check(args)
    cell(suite, args, "local", 1, settings=suite.settings(args, "local"))
    suite.check(args)
    suite.check(asked(tmp_path, methods=["local"], set={"h2tune": {"ridge": 1.0}}, jobs=3))  # nothing of its own
    with pytest.raises(
        SystemExit, match=r"sst2-32 local 1 was made with other settings \(rate: 0.0003 there, 0.001 here"
    ):
        suite.run(asked(tmp_path, methods=["local"], rate=1e-3))
    cell(suite, args, "local", 2, settings={"rate": 1e-3, "set": {}})
    with pytest.raises(SystemExit, match="local 2 was made with other settings"):
        suite.table(asked(tmp_path))


def test_a_suite_whose_processes_die_fails(suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying:
        exitcode = 1

        def __init__(self, **of: Any) -> None: ...
        def start(self) -> None: ...
        def join(self) -> None: ...

    class Context:
        Process = Dying

        class Queue:
            def put(self, key: Any) -> None: ...
            def cancel_join_thread(self) -> None: ...

    monkeypatch.setattr(suite, "get_context", lambda kind: Context)
    with pytest.raises(SystemExit, match=r"2 of 2 processes ended with errors .*; 4 runs are still to go"):
        suite.run(asked(tmp_path, jobs=2, seeds=2))


def test_a_table_says_where_its_cells_come_from(suite: Any, tmp_path: Path) -> None:
    args = asked(tmp_path)
    for seed, (method, gpu) in enumerate([("local", None), ("bias", None), ("local", "one")]):
        cell(suite, args, method, seed, machine={"gpu": gpu})
    suite.table(args)
    written = json.loads(args.write.read_text())["made"]
    assert {(o["machine"]["gpu"], o["cells"], o["last"]) for o in written} == {(None, 2, "day 1"), ("one", 1, "day 2")}
