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


def test_a_table_says_where_its_cells_come_from(suite: Any, tmp_path: Path) -> None:
    args = argparse.Namespace(
        out=tmp_path, settings=["sst2-32"], methods=["local", "bias"], write=tmp_path / "table.json"
    )
    for seed, (method, gpu) in enumerate([("local", None), ("bias", None), ("local", "one")]):
        client = {"metric": 0.5, "nats": 0.7}
        made = {"commit": "c", "machine": {"gpu": gpu}, "date": f"day {seed}", "clients": {"a": client}}
        path = suite.cell(args, "sst2-32", method, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made))
    suite.table(args)
    written = json.loads(args.write.read_text())["made"]
    assert {(o["machine"]["gpu"], o["cells"], o["last"]) for o in written} == {(None, 2, "day 1"), ("one", 1, "day 2")}
