"""A mistake that concerns the whole file hides no other one: `plan` shows all in one go, `run` all of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from h2tune.cli.app import app
from h2tune.config import ConfigError, load_config, parse_config

CLIENT = {
    "name": "a",
    "model": "zoo:gpt2",
    "task": "demo-fill",
    "train": "demo:fill?split=train",
    "test": "demo:fill?split=test",
}
BANK = {"name": "bank", "train": "missing.csv"}


def said_by_plan(folder: Path, data: dict[str, Any]) -> list[str]:
    (folder / "f.yaml").write_text(yaml.safe_dump(data))
    result = CliRunner().invoke(app, ["plan", str(folder / "f.yaml")])
    assert result.exit_code != 0
    return [line.strip() for line in result.stderr.splitlines()]


NAMES = "two clients have the name 'a'; names must be unique"
MANY = "quorum 5 can never be met by 2 clients"
BEST = "select: best needs baseline: local"
AUTO = "a: keep: auto needs a budget: {upload: ..., memory: ..., step_ms: ...}"


@pytest.mark.parametrize(
    ("changes", "clients", "lines"),
    [
        ({"quorum": 5}, [{}, {}], [NAMES, MANY]),
        ({"select": "best"}, [{}], [BEST]),
        ({"select": "best", "rank": "x"}, [{"keep": "auto"}], [BEST, AUTO, "rank: should be a whole number, not 'x'"]),
        ({"rounds": 2}, [{"joins": 3}], ["a would never take part: it joins in a round after the last, 2"]),
        ({}, [{"keep": "auto", "task": "demo-fil"}], [AUTO, "a: unknown task 'demo-fil'; did you mean 'demo-fill'?"]),
        ({}, [{"budget": {"upload": "1MB"}}], ["a: budget has no effect without keep: auto"]),
    ],
)
def test_plan_goes_on_to_models_and_data(
    changes: dict[str, Any], clients: list[dict[str, Any]], lines: list[str], tmp_path: Path
) -> None:
    rows = [CLIENT | {"train": "missing.jsonl"} | change for change in clients]
    said = said_by_plan(tmp_path, {"method": "fedit", "clients": rows} | changes)
    for line in lines:
        assert sum(line in text for text in said) == 1, said
    assert any("missing.jsonl" in text for text in said), said


def test_all_conflicts_are_told_before_a_run() -> None:
    with pytest.raises(ConfigError) as told:
        parse_config({"quorum": 5, "select": "best", "rank": 0, "clients": [CLIENT | {"keep": "auto"}, CLIENT]})
    assert set(told.value.problems) == {NAMES, MANY, BEST, AUTO, "rank: should be 1 or more, not 0"}


@pytest.mark.parametrize(
    ("changes", "client", "line"),
    [
        ({"rounds": "x"}, {"joins": 8}, "rounds: should be a whole number, not 'x'"),
        ({"select": "best", "baseline": 3}, {}, "baseline: should be text"),
        ({}, {"keep": "auto", "budget": 7}, "a: budget: should be a mapping"),
        ({}, {"keep": "half", "budget": {"upload": "1MB"}}, "a: keep: should be a number or 'auto'"),
    ],
)
def test_a_key_that_is_wrong_is_in_conflict_with_nothing(changes: Any, client: Any, line: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse_config({"clients": [CLIENT | client]} | changes)
    assert all(problem.startswith(line.split(":")[0]) for problem in told.value.problems), told.value.problems
    assert told.value.problems[0].startswith(line)


def test_a_promise_without_a_value_hides_no_other_mistake(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(yaml.safe_dump({"rank": 0, "quorum": 2, "clients": [CLIENT]}) + "privacy:\n")
    with pytest.raises(ConfigError) as told:
        load_config(path)
    assert [line.split(":")[0] for line in told.value.problems] == [
        "privacy",
        "rank",
        "quorum 2 can never be met by 1 clients",
    ]


def test_a_vertical_plan_shows_every_conflict_and_the_data(tmp_path: Path) -> None:
    data = {
        "label": {"party": "bank", "column": "y", "classes": ["a", "a"]},
        "method": {"unseen": "described"},
        "parties": [BANK | {"labels": "y"}, {"name": "shop", "train": "none.csv", "prior": {"a": 0.5, "b": 0.4}}],
    }
    said = "\n".join(said_by_plan(tmp_path, data))
    for words in ("names a class twice", "label.vectors must name a file", "bank is the active party",
                  "shop: the shares in `prior` must sum to 1", "missing.csv", "none.csv"):  # fmt: skip
        assert said.count(words) == 1, said
    data = {"label": {"party": "bnk", "column": "y"}, "parties": [BANK, BANK], "rounds": 0}
    said = "\n".join(said_by_plan(tmp_path, data))
    for words in ("two parties have the name 'bank'", "label.party is 'bnk'", "rounds: should be 1 or more"):
        assert said.count(words) == 1, said
