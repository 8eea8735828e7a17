"""Where runs failed, methods are compared over what all of them have, and the comparison says what that leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from h2tune.cli.output import print_comparison
from h2tune.comparison.cells import Cell, Outcome
from h2tune.comparison.result import Comparison
from h2tune.comparison.statistics import summarise
from h2tune.config import parse_config
from h2tune.report.comparison_page import render
from h2tune.report.comparison_text import missing_of, verdict

CLIENT = {"model": "zoo:llama", "task": "demo-fill", "train": "demo:fill?n=30", "test": "demo:fill?n=8"}
Scores = dict[str, float | None]


def metrics(scores: Scores) -> dict[str, Any]:
    """Of a run in which each client has this share right (and 1 - share nats); None: it has no result."""
    clients = {}
    for name, right in scores.items():
        nats = 1.0 if right is None else 1 - right
        record = {"round": 1, "bytes_up": 1, "bytes_down": 1, "validation": {"metric": 0.5, "nats": nats}}
        final = None if right is None else {"metric": right, "nats": nats, "validation_nats": nats}
        clients[name] = {"final": final, "rounds": [record], "setup_bytes": {"up": 1, "down": 2}}
    return {"clients": clients, "seconds": 1.0}


def compared(runs: dict[str, list[Scores | None]]) -> Comparison:
    """A comparison of methods with these shares right, by seed; None: that run failed."""
    outcomes = [
        Outcome(Cell(method, seed), None if scores is None else metrics(scores), reason="no memory")
        for method, found in runs.items()
        for seed, scores in enumerate(found)
    ]
    experiment = parse_config({"name": "tiny", "clients": [CLIENT | {"name": name} for name in "ab"]})
    return summarise(experiment, outcomes, {})


def both(right: float) -> Scores:
    return {"a": right, "b": right}


def test_failing_with_a_hard_seed_is_no_gain(capsys: pytest.CaptureFixture[str]) -> None:
    """Seed 1 is hard, and fedit, which is worse, fails with it."""
    result = compared({"local": [both(0.5), both(0.2), both(0.5)], "fedit": [both(0.45), None, both(0.45)]})
    table = result["tables"][0]
    local, fedit = table["methods"]
    assert local["seeds"] == {"0": 0.5, "2": 0.5} and fedit["seeds"] == {"0": 0.45, "2": 0.45}
    assert local["mean"][0] == local["metric"][0] == local["clients"]["a"][0] == 0.5
    assert local["nats"][0] == local["curve"][0][1] == 0.5
    assert table["left_out"] == {"1": ["fedit"]} and table["apart"] == []
    assert verdict(result) == "local is best, +5.0 points over fedit; the interval excludes 0."
    told = "Figures leave out seeds that not all methods have a result for (seed 1: none with fedit)."
    assert missing_of(table) == told and told in render(result)
    print_comparison(result)
    assert told in capsys.readouterr().out


def test_rivals_are_chosen_over_the_same_seeds(tmp_path: Path) -> None:
    """Over the seeds that it has, `ffa` is the best; over those that all have, it is the worst."""
    runs = {"local": [both(0.3), both(0.8)], "fedit": [both(0.4), both(0.9)], "ffa": [None, both(0.7)]}
    table = compared(runs)["tables"][0]
    assert [(row["method"], row["best_other"]) for row in table["methods"]] == [
        ("local", "fedit"), ("fedit", "local"), ("ffa", "fedit")]  # fmt: skip
    assert [row["over_best_other"][0] for row in table["methods"]] == pytest.approx([-0.1, 0.1, -0.2])


def test_without_a_common_seed_the_most_methods_that_have_one_are_compared() -> None:
    runs = {"local": [both(0.3), both(0.8), None], "fedit": [both(0.4), both(0.9), None], "ffa": [None, None, both(1)]}
    table = compared(runs)["tables"][0]
    assert [row["method"] for row in table["methods"]] == ["local", "fedit"]
    assert table["left_out"] == {} and table["apart"] == ["ffa"]
    assert missing_of(table) == "Left out, with a result for none of the seeds that are compared: ffa."
    alone = compared({"local": [both(0.3), None], "fedit": [None, both(0.9)]})
    assert verdict(alone) == "local shares no seed with another method, so nothing can be compared."
    assert "none of the seeds that are compared: fedit." in render(alone)


@pytest.mark.parametrize(("seeds", "kept", "shared"), [
    ({"local": [0], "fedit": [1], "h2tune": [1]}, ["fedit", "h2tune"], [1]),  # the reference may be what is left out
    ({"local": [0, 1, 2], "fedit": [0, 1], "h2tune": [2]}, ["local", "fedit"], [0, 1]),  # two pairs: more seeds
    ({"local": [2], "fedit": [1, 2], "h2tune": [1]}, ["fedit", "h2tune"], [1]),  # as many: the lowest seed
])  # fmt: skip
def test_the_largest_set_with_a_common_seed_is_kept(
    seeds: dict[str, list[int]], kept: list[str], shared: list[int]
) -> None:
    runs = {method: [both(0.5) if seed in own else None for seed in range(3)] for method, own in seeds.items()}
    table = compared(runs)["tables"][0]
    assert [row["method"] for row in table["methods"]] == kept
    assert all(list(row["seeds"]) == [str(seed) for seed in shared] for row in table["methods"])
    apart = [method for method in seeds if method not in kept]
    assert table["apart"] == apart and f"compared: {', '.join(apart)}." in missing_of(table)


def test_a_client_counts_with_a_seed_for_all_methods_or_for_none() -> None:
    """Figures by client and curves, too: seed 1 is hard for b, which is lost there with fedit."""
    runs = {
        "local": [both(0.5), {"a": 0.5, "b": 0.1}],
        "fedit": [both(0.45), {"a": 0.45, "b": None}],
    }
    local, fedit = compared(runs)["tables"][0]["methods"]
    assert local["clients"]["b"][0] == 0.5 > fedit["clients"]["b"][0]
    assert local["curve"][0][1] == pytest.approx(0.5) and fedit["curve"][0][1] == pytest.approx(0.55)


def test_all_runs_are_there() -> None:
    table = compared({"local": [both(0.5)], "fedit": [both(0.6)]})["tables"][0]
    assert missing_of(table) == "" and table["left_out"] == table["missing"] == {}
