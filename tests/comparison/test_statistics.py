"""The figures of a comparison, and the words for them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from h2tune.cli.output import print_comparison
from h2tune.comparison import grid
from h2tune.comparison.cells import TUNING_SEED, Cell, Outcome, experiment_of
from h2tune.comparison.compare import best_rates
from h2tune.comparison.statistics import interval, summarise
from h2tune.config import load_config
from h2tune.report.comparison_page import render
from h2tune.report.comparison_text import averaging_of, missing_of, span_of, text_of, verdict

FILE = """
name: tiny
clients:
  - {name: a, model: "zoo:llama", task: demo-fill, train: "demo:fill?n=30", test: "demo:fill?n=8"}
  - {name: b, model: "zoo:gpt2", task: demo-choice, train: "demo:choice?n=30", test: "demo:choice?n=8"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(FILE)
    return path


def metrics(per_client: dict[str, tuple[float, float] | None], up: int = 100) -> dict[str, Any]:
    record = {"round": 1, "bytes_up": up, "bytes_down": up, "validation": {"metric": 0.5, "nats": 1.0}}
    clients = {
        name: {
            "final": None if score is None else {"metric": score[0], "nats": score[1], "validation_nats": score[1]},
            "rounds": [record],
            "setup_bytes": {"up": 1, "down": 2},
        }
        for name, score in per_client.items()
    }
    return {"clients": clients, "seconds": 1.0, "mean": {"final": 0.0}}


def test_figures_are_paired_by_seed(file: Path) -> None:
    rng = np.random.default_rng(0)
    level = rng.uniform(0.4, 0.6, size=5)
    gain = rng.normal(0.05, 0.01, size=5)
    outcomes = []
    for seed in range(5):
        outcomes.append(Outcome(Cell("local", seed), metrics({"a": (level[seed], 1), "b": (level[seed], 1)})))
        good = level[seed] + gain[seed]
        outcomes.append(Outcome(Cell("h2tune", seed), metrics({"a": (good, 1), "b": (good, 1)}, up=7)))
    table = summarise(load_config(file), outcomes, {})["tables"][0]
    row = table["methods"][1]
    want = stats.t.interval(0.95, 4, loc=gain.mean(), scale=stats.sem(gain))
    np.testing.assert_allclose(row["over_local"], [gain.mean(), *want])
    np.testing.assert_allclose(row["mean"][0], (level + gain).mean())
    assert row["best_other"] == "local" and row["bytes_up"] == 7 and table["quantity"] == "metric"
    assert row["over_local"][1] > 0 > row["mean"][1] - row["mean"][0]


def test_what_averaging_is_worth_is_said(file: Path) -> None:
    def table(gains: list[float]) -> dict[str, Any]:
        outcomes = []
        for seed, gain in enumerate(gains):
            outcomes.append(Outcome(Cell("h2tune-unshared", seed), metrics({"a": (0.5, 1), "b": (0.5, 1)})))
            outcomes.append(Outcome(Cell("h2tune", seed), metrics({"a": (0.5 + gain, 1), "b": (0.5, 1)})))
        return summarise(load_config(file), outcomes, {})["tables"][0]

    assert averaging_of(table([0.1, 0.12])).endswith(
        "not averaged): +5.5 (-0.9 to +11.9) points, which may be chance."
    )
    assert averaging_of(table([0.1, 0.1, 0.11])).endswith("+5.2 (+4.4 to +5.9) points.")
    assert averaging_of(table([0.1])).endswith("+5.0 points.")
    alone = summarise(load_config(file), [Outcome(Cell("h2tune", 0), metrics({"a": (0.5, 1), "b": (0.5, 1)}))], {})
    assert averaging_of(alone["tables"][0]) == ""


def test_losing_the_weakest_client_is_no_gain(file: Path) -> None:
    """With h2tune client b drops out for seed 1: b counts with neither method there, and the table says so."""
    strong, weak = (0.8, 1.0), (0.2, 1.0)
    outcomes = [Outcome(Cell(m, s), metrics({"a": strong, "b": weak})) for m in ("local", "h2tune") for s in (0, 1)]
    outcomes[3] = Outcome(Cell("h2tune", 1), metrics({"a": strong, "b": None}))
    result = summarise(load_config(file), outcomes, {})
    table = result["tables"][0]
    local, h2tune = table["methods"]
    assert local["seeds"] == h2tune["seeds"] == {"0": 0.5, "1": 0.8}
    assert h2tune["over_local"] == [0, 0, 0] and table["missing"] == {"1": ["b"]}
    assert missing_of(table) == ("Figures leave out clients that have no result with at least one method (seed 1: b).")
    assert [row["clients"]["b"][0] for row in (local, h2tune)] == [0.2, 0.2]
    assert "seed 1: b" in render(result)


def test_a_run_without_any_result_is_a_failed_one(file: Path) -> None:
    outcomes = [
        Outcome(Cell("local", 0), metrics({"a": (0.8, 1.0)})),
        Outcome(Cell("h2tune", 0), metrics({"a": None})),
    ]
    result = summarise(load_config(file), outcomes, {})
    assert [row["method"] for row in result["tables"][0]["methods"]] == ["local"]
    assert result["failed"] == {"runs/h2tune/seed-0": "no client has a result"}
    nothing = summarise(load_config(file), outcomes[1:], {})
    assert nothing["tables"][0]["methods"] == [] and verdict(nothing) == "No run finished."


def test_intervals_stay_where_values_can_be() -> None:
    """Two seeds give wide intervals: no share below 0 or above 1, no negative loss."""
    assert interval([0.1, 0.3], 0, 1)[1:] == [0, 1]
    mean, low, high = interval([0.1, 0.3])
    assert low < 0 < 1 < high and mean == 0.2


def test_the_terminal_says_who_is_best_and_what_the_figures_are(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [
        Outcome(Cell("local", 0), metrics({"a": (0.01, 2.0), "b": (0.6, 2.0)})),
        Outcome(Cell("h2tune", 0), metrics({"a": (0.0, 1.5), "b": (0.5, 1.5)}, up=2000)),
    ]
    print_comparison(summarise(load_config(file), outcomes, {}))
    text = capsys.readouterr().out
    assert text.startswith("tiny: h2tune is best, +0.500 nats over local; one seed says little.")
    for words in ("less is better", "natural logarithms", "positive where the method is better", "once, up", "2.0 kB"):
        assert words in " ".join(text.split())
    tables = text.split("Nats per answer token on test")[0]
    assert max(len(line) for line in tables.splitlines()) <= 80


def test_nats_stand_in_where_hardly_anything_is_right(file: Path) -> None:
    outcomes = [
        Outcome(Cell("local", 0), metrics({"a": (0.01, 2.0), "b": (0.6, 2.0)})),
        Outcome(Cell("h2tune", 0), metrics({"a": (0.0, 1.5), "b": (0.5, 1.5)})),
    ]
    table = summarise(load_config(file), outcomes, {})["tables"][0]
    assert table["quantity"] == "nats" and table["methods"][1]["over_local"][0] == 0.5  # less is better, so positive
    assert table["methods"][1]["best_other"] == "local"


def test_texts_of_intervals() -> None:
    assert interval([0.5]) == [0.5, 0.5, 0.5]
    assert text_of([0.5, 0.4, 0.6], "metric") == "50.0 (40.0 to 60.0)"
    assert text_of([-0.0001, -0.0001, -0.0001], "metric", signed=True) == "+0.0"
    assert text_of([0.5, 0.25, 0.75], "nats", signed=True) == "+0.500 (+0.250 to +0.750)"
    assert text_of(None, "nats") == "-"


def test_a_finished_run_is_told_in_both_quantities() -> None:
    told = grid._line(Outcome(Cell("h2tune", 0), metrics({"a": (0.25, 2.0), "b": (0.75, 1.0)})))
    assert told == "h2tune/seed-0  50.0 % right, 1.500 nats  1 s"


def test_rates_are_chosen_by_validation_never_by_test() -> None:
    def trial(rate: float, right: float, nats: float, test: float, other: float = 0.5) -> Outcome:
        found = metrics({"a": (test, 1.0), "b": (0.5, 1.0)})
        found["clients"]["a"]["final"] |= {"validation": right, "validation_nats": nats}
        found["clients"]["b"]["final"] |= {"validation": other, "validation_nats": 1.0}
        return Outcome(Cell("local", TUNING_SEED, None, rate, True), found)

    # What the table shows counts, though nats would say x0.3; between equals nats decide.
    assert best_rates([trial(0.3, 0.4, 0.8, 0.9), trial(1, 0.6, 0.9, 0.1), trial(3, 0.6, 1.1, 0.9)]) == {"local": 1}
    # Without its weakest client a run looks better.
    lost = trial(3, 0.9, 0.5, 0.9)
    lost.metrics["clients"]["b"]["final"] = None
    assert best_rates([trial(1, 0.6, 0.9, 0.1), lost]) == {"local": 1}
    # A client that gets next to nothing right at any rate: nats for all.
    trials = [trial(0.3, 0.4, 0.8, 0.9, other=0.0), trial(1, 0.6, 0.9, 0.1, other=0.04)]
    assert best_rates(trials) == {"local": 0.3}


def test_the_page_says_which_method_does_not_suit_the_federation(file: Path) -> None:
    outcomes = [
        Outcome(Cell("local", 0), metrics({"a": (0.5, 1.0), "b": (0.5, 1.0)})),
        Outcome(Cell("fedit", 0), reason="factors only fit between <equal> models", skipped=True),
    ]
    page = render(summarise(load_config(file), outcomes, {}))
    assert "fedit" in page and "only fit between &lt;equal&gt; models" in page


@pytest.mark.parametrize("noise", [0.0, 1e-16, 4e-16, 1e-3])
def test_a_page_of_seeds_that_came_out_alike(file: Path, noise: float) -> None:
    low = 0.3222222222222222
    outcomes = [
        Outcome(Cell(method, seed), metrics({"a": (low + seed * noise, 1.0), "b": (low, 1.0)}))
        for method in ("local", "h2tune") for seed in (0, 1)
    ]  # fmt: skip
    page = render(summarise(experiment_of(file, Cell("local", 0)), outcomes, {}))
    assert "32.2" in page and (" to " in page.split("<tbody>")[1].split("</tbody>")[0]) is (noise == 1e-3)


def test_a_method_that_diverged_is_in_the_tables_and_in_no_picture(file: Path) -> None:
    outcomes = [Outcome(Cell(m, 0), metrics({"a": (0.5, 1.0), "b": (0.5, 1.0)})) for m in ("local", "fedit", "h2tune")]
    result = summarise(load_config(file), outcomes, {})
    for row in result["tables"][0]["methods"]:
        if row["method"] == "fedit":
            row["over_local"], row["mean"], row["curve"] = [math.nan] * 3, [math.nan] * 3, [[1, math.nan]]
    page = render(result)
    names = re.findall(r"<title>(\w+)[:,]", page)
    assert names.count("fedit") == 0 and names.count("h2tune") == 3  # differences, bytes, curves
    assert page.count("<bdi>fedit</bdi>") == 1


def test_the_interval_alone() -> None:
    assert span_of([0.5, 0.4, 0.6], "metric") == "(40.0 to 60.0)"
    assert span_of([0.5, 0.5 - 1e-16, 0.5 + 1e-16], "metric") == span_of(None, "metric") == ""


def test_only_a_variant_that_does_not_average_tells_what_averaging_is_worth(file: Path) -> None:
    def outcomes(first: str, second: str) -> list[Outcome]:
        scores = {"a": (0.5, 1.0), "b": (0.6, 1.0)}
        return [Outcome(Cell(name, seed), metrics(scores)) for name in (first, second) for seed in (0, 1)]

    experiment = load_config(file)
    assert averaging_of(summarise(experiment, outcomes("h2tune", "h2tune-unshared"), {})["tables"][0])
    assert averaging_of(summarise(experiment, outcomes("lada", "lada-published"), {})["tables"][0]) == ""


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_sweep_has_the_unit_of_each_amount_where_one_has_no_result(empty: int, file: Path) -> None:
    found = []
    for place, size in enumerate((10, 20, 30)):
        for name in ("local", "h2tune"):
            for seed in (0, 1):
                right = 0.001 if place == 1 else 0.5  # next to nothing right: this table is in nats
                scores = metrics({"a": (right, 1.0 + seed), "b": (right, 1.0)})
                cell = Cell(name, seed, n_train=size)
                found.append(Outcome(cell, reason="no memory") if place == empty else Outcome(cell, scores))
    result = summarise(load_config(file), found, {})
    page = render(result)
    row = page.split("How much data")[1].split("</table>")[0]
    assert [size for size in ("10", "20", "30") if f"{size} rows" in row] and row.count("<td") == 2 * 3
