"""What deserves attention is said by the plan, by the run as it begins, and in its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from federations import small

from h2tune.config import Experiment
from h2tune.federation import run
from h2tune.participant.prepare import FEW
from h2tune.plan import make_plan
from h2tune.report import write_report

HEAD = {"kind": "classify", "prompt": "{text}", "answer": "{label}", "labels": ["good", "bad"]}


def with_a_head(folder: Path, tests: int) -> Experiment:
    """Two clients, one with a classification head, and so many test rows at it."""
    rows = [f"note {i},{'good' if i % 2 else 'bad'}\n" for i in range(30 + tests)]
    for name, some in (("train", rows[:30]), ("test", rows[30:])):
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(some))
    config = small(rounds=1, scored=FEW, method={"name": "h2tune", "frames": "effect"}, baseline="local")
    data = {"task": HEAD, "train": str(folder / "train.csv"), "test": str(folder / "test.csv"), "validation": None}
    return config.model_copy(update={"clients": [config.clients[0].model_copy(update=data), config.clients[1]]})


class Told:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str, level: str = "info") -> None:
        self.texts.append(f"{level}: {text}")

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def test_a_run_repeats_the_warnings_of_its_plan_before_its_baselines(tmp_path: Path) -> None:
    config = with_a_head(tmp_path, tests=3)
    planned, told = make_plan(config).warnings, Told()
    assert any("nobody shares with anybody" in text for text in planned)
    assert [text for text in planned if text.startswith("c0: 3 test rows")] and len(planned) == 2
    run(config, tmp_path / "run", watcher=told)
    first = next(i for i, text in enumerate(told.texts) if "for comparison" in text)
    assert sorted(t for t in told.texts[:first] if t[:7] == "warning") == sorted(f"warning: {t}" for t in planned)
    assert not set(told.texts[first:]) & set(told.texts[:first])  # once, not again with the run itself
    page = write_report(tmp_path / "run").read_text()
    assert "nobody shares with anybody" in page and "3 test rows" in page
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["client"] for event in events if event["event"] == "warning"][:2] == [None, "c0"]


@pytest.mark.parametrize(("tests", "said"), [(1, "one test row: "), (FEW - 1, f"{FEW - 1} test rows: "), (FEW, None)])
def test_a_plan_says_where_test_rows_are_few(tests: int, said: str | None) -> None:
    config = small(rounds=1, method="local", scored=tests)
    found = [text for text in make_plan(config).warnings if "says little" in text]
    assert found == [f"{c.name}: {said}a score of fewer than {FEW} says little" for c in config.clients if said]
