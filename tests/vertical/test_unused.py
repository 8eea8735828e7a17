"""Keys of a file that change nothing are named, and those that change something are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from vertical.tables import config, planted

from h2tune.cli import vertical as commands
from h2tune.vertical.config import VerticalConfig, parse_vertical
from h2tune.vertical.federation import run
from h2tune.vertical.methods import METHODS
from h2tune.vertical.plan import make_plan
from h2tune.vertical.unused import unused


def said(config: VerticalConfig, name: str | None = None) -> str:
    return " | ".join(unused(config, METHODS[name or config.method.name]))


def from_file(**sections: object) -> VerticalConfig:
    """A config whose sections hold just these keys."""
    plain = {
        "label": {"party": "bank", "column": "kind"},
        "parties": [{"name": n, "train": "-"} for n in ("bank", "shop")],
    }
    return parse_vertical(plain | sections)


def test_values_that_a_rival_has_its_own_of_are_named():
    given = from_file(
        method={"name": "splitnn", "gate": "coverage", "view_weight": 2.0, "labels": True, "select": "none"},
        training={"dropout": 0.1, "local_steps": 20, "dim": 8},
    )
    assert said(given) == (
        "splitnn has values of its own (in brackets) in place of those of the file: method.gate: coverage (mean),"
        " method.view_weight: 2 (0), method.labels: true (false), training.dropout: 0.1 (0), training.local_steps: 20 (0)"
    )
    assert said(given, "laser").count("training.dropout: 0.1 (0.5)") == 1
    assert said(given, "fedhssl") == said(given, "proto-evfl") == ""


@pytest.mark.parametrize("name", list(METHODS))
def test_a_file_that_says_nothing_is_told_nothing(name: str):
    assert said(from_file(), name) == said(from_file(method=name)) == said(from_file(method={"warmup": 3}), name) == ""


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ({"combine": "probabilities", "top": "mlp"}, "method.top: mlp is without effect beside method.combine"),
        ({"combine": "probabilities", "gate": "coverage"}, "method.gate: coverage is without effect beside"),
        ({"combine": "probabilities", "gate": "learned"}, "method.gate: learned is without effect beside"),
        ({"select": "all", "agree": True}, "method.agree: true is without effect beside method.select: all"),
    ],
)
def test_options_without_effect_beside_others_are_named(method: dict[str, object], key: str):
    assert key in said(from_file(method=method))
    for name in method:
        assert said(from_file(method={k: v for k, v in method.items() if k != name})) == ""


def test_plan_run_and_compare_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    frames, text = planted(tests=12), "splitnn has values of its own"
    given = config(rounds=1, method={"name": "splitnn", "gate": "coverage"}, baseline="none")
    assert text in make_plan(given, frames).warnings[0]
    heard: list[str] = []

    class Watcher:
        def round_done(self, record: object, rounds: int) -> None: ...
        def message(self, text: str, level: str = "info") -> None:
            heard.append(text)

    run(given, tmp_path / "run", frames=frames, watcher=Watcher())
    assert text in heard[0] and text in (tmp_path / "run" / "events.jsonl").read_text()
    for name, tables in frames.items():
        for kind, table in zip(("train", "test"), tables, strict=True):
            table.to_csv(tmp_path / f"{name}_{kind}.csv", index=False)
    plain = given.model_dump(mode="json", exclude_unset=True)
    plain["parties"] = [{"name": n, "train": f"{n}_train.csv", "test": f"{n}_test.csv"} for n in frames]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(plain))
    commands.compare(tmp_path / "a.yaml", "splitnn,laser", 2, tmp_path / "cells", as_json=True)
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in told] == ["splitnn", "laser"]
