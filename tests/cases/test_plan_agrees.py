"""Kind C: `plan` says no to what a run refuses, in the same words, and yes to what runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cases.bad_cases import BAD, GOOD

from h2tune import federation
from h2tune.plan import make_plan


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_run_is_refused_by_both_in_the_same_words(name: str, tmp_path: Path) -> None:
    case, words = BAD[name]
    experiment = case(tmp_path)
    problems = make_plan(experiment).problems
    with pytest.raises(ValueError) as error:
        federation.run(experiment, tmp_path / "out")
    assert re.search(words, str(error.value))
    said = str(error.value).splitlines()[:4]
    assert {line.removeprefix("c: ") for line in problems} == {line.removeprefix("c: ") for line in said}
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize("name", GOOD)
def test_what_runs_is_planned(name: str, tmp_path: Path) -> None:
    experiment = GOOD[name](tmp_path)
    plan = make_plan(experiment)
    assert plan.problems == []
    metrics = federation.run(experiment, tmp_path / "out")
    (client,) = metrics["clients"].values()
    assert client["status"] == "ok" and client["final"] is not None
    assert plan.clients[0].family == client["family"]


def test_anchors_that_a_model_cannot_read_whole_are_refused_by_both(tmp_path: Path) -> None:
    (tmp_path / "anchors.txt").write_text(("zzz " * 30 + "\n") * 30, "utf-8")
    experiment = GOOD["name with a dot"](tmp_path).model_copy(update={"anchors": str(tmp_path / "anchors.txt")})
    words = r"An anchor has \d+ tokens, the model reads 64: split long anchors"
    model = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text("utf-8"))
    assert model["model_max_length"] > 64
    (problem,) = make_plan(experiment).problems
    with pytest.raises(ValueError, match=words):
        federation.run(experiment, tmp_path / "out")
    assert re.search(words, problem)
