from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import client, metrics, three

from h2tune.report.format import duration, points, size
from h2tune.report.read import read_run
from h2tune.report.verdict import Verdict, verdict


@pytest.fixture
def judge(write_run: Callable[..., Path]) -> Callable[[dict[str, Any]], Verdict]:
    return lambda data: verdict(read_run(write_run(data)))


Judge = Callable[[dict[str, Any]], Verdict]


def test_units() -> None:
    assert [size(value) for value in (0, 999, 1000, 24_620, 3_100_000, 2e15, None)] == [
        "0\u202fB", "999\u202fB", "1.0\u202fkB", "24.6\u202fkB", "3.1\u202fMB", "2000\u202fTB", "\u2013",
    ]  # fmt: skip
    assert [points(value) for value in (0.1184, -0.02, 0.0001, None)] == ["+11.8", "\u22122.0", "0.0", "\u2013"]
    assert [duration(value) for value in (3.21, 59.8, 131, 7212)] == [
        "3.2\u202fs", "60\u202fs", "2\u202fmin 11\u202fs", "2\u202fh 00\u202fmin",
    ]  # fmt: skip


def test_a_gain_is_stated_with_its_interval(judge: Judge) -> None:
    found = judge(three())
    expected = "Federation raised the mean accuracy from 53.0 % (trained alone) to 64.7 %, for 3 of 3 clients."
    assert found.sentence.replace("\u202f", " ") == expected
    assert found.tone == "better" and "interval" in found.notes[0]


def test_a_loss_is_called_one(judge: Judge) -> None:
    data = three()
    for entry in data["clients"].values():
        entry["final"]["metric"], entry["kept"] = entry["local"]["metric"] - 0.08, "local"
    found = judge(data)
    assert "did not help" in found.sentence and "0 of 3 clients gained" in found.sentence
    assert any("3 of 3 clients kept" in note for note in found.notes)


def test_what_clients_took_of_the_core_is_said_where_they_chose(judge: Judge) -> None:
    run = three()
    for entry, share in zip(run["clients"].values(), (1.0, -1.0, 0.5), strict=True):
        entry["accepted"] = share
    notes = judge(run).notes
    said = "By their validation rows, of 3 clients 1 took the shared core, 1 its mean with their own, 1 took none."
    assert said in notes
    run["clients"]["bank"]["accepted"] = None
    assert any("of 2 clients that share a core, 1 took the shared core" in note for note in judge(run).notes)
    assert "bank shares nothing, so its difference is no effect of sharing." in judge(run).notes
    for entry in run["clients"].values():
        entry["accepted"] = 0.0
    found = judge(run)
    assert any("nobody took what was shared" in note and "not from sharing" in note for note in found.notes)
    assert found.sentence.startswith("Training with h2tune raised") and "Federation" not in found.sentence
    assert found.sentence.endswith("for 3 of 3 clients; in the last round nobody took the shared core.")
    for entry in run["clients"].values():
        entry["accepted"] = 1.0
    assert not any("validation rows" in note or "nothing" in note for note in judge(run).notes)


def test_a_difference_within_chance_is_not_sold_as_a_gain(judge: Judge) -> None:
    found = judge(metrics({"a": client(0, gain=0.02), "b": client(1, gain=0.01)}))
    assert "may be chance" in found.sentence and "raised" not in found.sentence


def test_no_difference(judge: Judge) -> None:
    assert "made no difference" in judge(metrics({"a": client(0, gain=0.0)})).sentence


def test_without_a_baseline_the_base_model_stands_in_and_the_page_says_so(judge: Judge) -> None:
    data = three()
    for entry in data["clients"].values():
        entry["local"] = None
    found = judge(data)
    assert found.sentence.startswith("Fine-tuning raised") and "untouched base model" in found.sentence
    assert any("cannot say what federation was worth" in note for note in found.notes)


def test_means_are_over_clients_with_all_results_and_say_who_is_missing(judge: Judge) -> None:
    data = three()
    data["clients"]["bank"]["final"] = None
    found = judge(data)
    # 50 % and 56 % alone, each 13 points more on average; without bank's 53 % in either mean.
    assert "from 53.0 % (trained alone) to 66.0 %" in found.sentence.replace("\u202f", " ")
    assert "for 2 of 2 clients with all results" in found.sentence
    assert found.notes[0] == "bank has no result in at least one column, so the means leave it out."


def test_unfinished_and_empty(judge: Judge) -> None:
    data = three(finished=False)
    for entry in data["clients"].values():
        entry["final"], entry["rounds"] = None, entry["rounds"][:2]
    assert judge(data).sentence.startswith("Unfinished, 2 of 5 rounds: no result on test data yet")
    assert "no client took part" in judge(metrics({}, finished=False)).sentence


def said(text: str) -> str:
    return text.replace("\u202f", " ").replace("\u2212", "-")


def test_what_clients_keep_is_a_mean_over_the_clients_of_the_headline(judge: Judge) -> None:
    """a falls from 50 to 40 %, b has 90 % alone and no final result: what a keeps is its 50 %."""
    data = metrics({"a": client(0, gain=-0.1), "b": client(1)})
    data["clients"]["b"] |= {"final": None, "kept": "local", "local": {"metric": 0.9, "nats": 1.0}}
    found = judge(data)
    assert "from 50.0 % (trained alone) to 40.0 %" in said(found.sentence)
    kept = "2 of 2 clients kept the adapter trained alone for its better validation result."
    assert f"{kept} What 1 of 2 clients keep reaches 50.0 % on test data." in map(said, found.notes)
    data["clients"]["b"]["final"] = {"metric": 0.6, "nats": 1.0}
    assert f"{kept} What the clients keep reaches 70.0 % on test data." in map(said, judge(data).notes)


def test_no_difference_is_larger_than_all(judge: Judge) -> None:
    data = metrics({"a": client(0)})
    data["clients"]["a"] |= {"n_test": 2, "local": {"metric": 0.0}, "final": {"metric": 1.0}}
    # Agresti and Caffo: both shares have variance (1/4)(3/4)/4, so the interval is 100 -+ 1.96 * 30.6 = 40.0 to 160.0.
    assert any("between +40.0 and +100.0 points" in said(note) for note in judge(data).notes)
    data["clients"]["a"] |= {"local": {"metric": 1.0}, "final": {"metric": 0.0}}
    assert any("between -100.0 and -40.0 points" in said(note) for note in judge(data).notes)


def test_one_client_has_no_mean(judge: Judge) -> None:
    data = metrics({"a": client(0)})
    data["clients"]["a"] |= {"base": None, "local": None, "final": {"metric": 0.5}}
    assert said(judge(data).sentence) == "The accuracy is 50.0 %, with nothing to compare it with."
    data["clients"]["a"]["final"] = None
    data["clients"]["a"]["rounds"][-1]["validation"]["metric"] = 0.25
    assert said(judge(data).sentence) == "No result on test data yet; the accuracy on validation data is 25.0 %."
