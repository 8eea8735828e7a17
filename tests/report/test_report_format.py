from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import client, metrics, three

from h2tune.report import format as words
from h2tune.report.read import read_run


@pytest.fixture
def judge(write_run: Callable[..., Path]) -> Callable[[dict[str, Any]], words.Verdict]:
    return lambda data: words.verdict(read_run(write_run(data)))


Judge = Callable[[dict[str, Any]], words.Verdict]


def test_units() -> None:
    assert [words.size(value) for value in (0, 999, 1000, 24_620, 3_100_000, 2e15, None)] == [
        "0\u202fB", "999\u202fB", "1.0\u202fkB", "24.6\u202fkB", "3.1\u202fMB", "2000\u202fTB", "\u2013",
    ]  # fmt: skip
    assert [words.points(value) for value in (0.1184, -0.02, 0.0001, None)] == ["+11.8", "\u22122.0", "0.0", "\u2013"]
    assert [words.duration(value) for value in (3.21, 59.8, 131, 7212)] == [
        "3.2\u202fs", "60\u202fs", "2\u202fmin 11\u202fs", "2\u202fh 00\u202fmin",
    ]  # fmt: skip


def test_a_gain_is_stated_with_its_interval(judge: Judge) -> None:
    verdict = judge(three())
    expected = "Federation raised the mean accuracy from 53.0 % (trained alone) to 64.7 %, for 3 of 3 clients."
    assert verdict.sentence.replace("\u202f", " ") == expected
    assert verdict.tone == "better" and "interval" in verdict.notes[0]


def test_a_loss_is_called_one(judge: Judge) -> None:
    data = three()
    for entry in data["clients"].values():
        entry["final"]["metric"], entry["kept"] = entry["local"]["metric"] - 0.08, "local"
    verdict = judge(data)
    assert "did not help" in verdict.sentence and "0 of 3 clients gained" in verdict.sentence
    assert any("3 of 3 clients kept" in note for note in verdict.notes)


def test_a_difference_within_chance_is_not_sold_as_a_gain(judge: Judge) -> None:
    verdict = judge(metrics({"a": client(0, gain=0.02), "b": client(1, gain=0.01)}))
    assert "may be chance" in verdict.sentence and "raised" not in verdict.sentence


def test_no_difference(judge: Judge) -> None:
    assert "made no difference" in judge(metrics({"a": client(0, gain=0.0)})).sentence


def test_without_a_baseline_the_base_model_stands_in_and_the_page_says_so(judge: Judge) -> None:
    data = three()
    for entry in data["clients"].values():
        entry["local"] = None
    verdict = judge(data)
    assert verdict.sentence.startswith("Fine-tuning raised") and "untouched base model" in verdict.sentence
    assert any("cannot say what federation was worth" in note for note in verdict.notes)


def test_means_are_over_clients_with_both_results(judge: Judge) -> None:
    data = three()
    data["clients"]["bank"]["final"] = None
    assert "for 2 of 2 clients with both results" in judge(data).sentence


def test_unfinished_and_empty(judge: Judge) -> None:
    data = three(finished=False)
    for entry in data["clients"].values():
        entry["final"], entry["rounds"] = None, entry["rounds"][:2]
    assert judge(data).sentence.startswith("Unfinished, 2 of 5 rounds: no result on test data yet")
    assert "no client took part" in judge(metrics({}, finished=False)).sentence
