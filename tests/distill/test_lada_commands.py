"""`h2tune demo --lada`, `h2tune init --lada` and the report, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from distill.lada_federation import question_file
from typer.testing import CliRunner

from h2tune.cli import lada as commands
from h2tune.cli.app import app
from h2tune.config import load_config
from h2tune.methods.registry import resolve_method
from h2tune.plan import make_plan
from h2tune.report import write_report
from h2tune.report.read import read_run

SHORT: dict[str, Any] = {
    "rounds": 2,
    "training": {"steps": 4, "batch_size": 8},
    "evaluation": {"every": 2, "n_validation": 10},
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]]]:
    """A short demo."""
    from h2tune.distill.demo import lada_demo

    folder = tmp_path_factory.mktemp("lada") / "run"
    clients = [c.model_dump() | {"n_train": 24, "n_test": 10} for c in lada_demo().clients]
    method = {"name": "lada", "teacher": "teacher", "slice": 20, "budget": "300B"}
    public = {"source": "demo:fill?split=anchors&n=40&seed=0", "task": "demo-fill"}
    original = commands.lada_demo
    commands.lada_demo = lambda seed, changes, **keys: original(seed, changes).model_copy(
        update={"clients": original(0, None, clients=clients).clients, "rounds": 2,
                "training": original(0, None, **SHORT).training, "evaluation": original(0, None, **SHORT).evaluation,
                "public": original(0, None, public=public).public, "method": method | changes}
    )  # fmt: skip
    try:
        found = commands.demo(folder, 0, as_json=True)
    finally:
        commands.lada_demo = original
    return folder, found


@pytest.mark.slow
def test_the_demo_compares_four_ways_for_every_client(demo: Any) -> None:
    folder, found = demo
    assert list(found) == ["teacher", "clinic", "shop"]
    assert list(found["clinic"]) == ["base", "LaDa", "alone", "all samples", "random, equal bytes"]
    assert all(0 <= share <= 1 for row in found.values() for share in row.values())
    assert (folder / "beside" / "random" / "metrics.json").is_file()


def test_the_report_shows_who_was_given_what_and_why_with_examples_in_full(demo: Any) -> None:
    folder, _ = demo
    metrics = json.loads((folder / "metrics.json").read_text())
    rows, examples = metrics["flows"]["table"], metrics["flows"]["examples"]
    assert {row["student"] for row in rows} == {"teacher", "clinic", "shop"}
    page = write_report(folder).read_text()
    assert "What flowed" in page and "Worth" in page and "<script" not in page
    assert 0 < len(examples) <= 6
    for example in examples:
        assert example["question"].splitlines()[0] in page
    run = read_run(folder)
    assert run.flows is not None and len(run.flows.rows) == len(rows)
    assert {row.outcome for row in run.flows.rows} <= {
        "kept",
        "half kept",
        "nothing learnt",
        "taken back: validation was worse",
    }


@pytest.mark.parametrize("flows", [None, 3, {"table": "x"}, {"table": [{"round": "x"}, 4]},
                                   {"table": [{"round": 1, "refused": 5, "items": None}], "examples": [7]}])  # fmt: skip
def test_a_damaged_table_of_flows_does_not_stop_the_report(flows: Any, demo: Any, tmp_path: Path) -> None:
    metrics = json.loads((demo[0] / "metrics.json").read_text()) | {"flows": flows}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert "<html" in write_report(tmp_path).read_text()


def test_init_writes_a_file_that_needs_nothing_but_data(tmp_path: Path) -> None:
    runner, file = CliRunner(), tmp_path / "lada.yaml"
    result = runner.invoke(app, ["init", str(file), "--lada"])
    assert result.exit_code == 0 and "h2tune plan" in result.output
    again = runner.invoke(app, ["init", str(file), "--lada"])
    assert again.exit_code == 1 and "exists already" in again.output
    experiment = load_config(file)
    method, settings = resolve_method(experiment.method)
    assert method.name == "lada" and settings.teacher == "large" and experiment.public is not None
    assert all("no file or folder" in problem for problem in make_plan(experiment).problems)
    for folder in ("large", "small"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for part in ("train", "test"):
            rows = [{"question": f"{folder} {part} {i} and {i}?", "answer": f"#### {2 * i}"} for i in range(60)]
            path = tmp_path / "data" / folder / f"{part}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"question": f"public {i} and {i}?", "answer": f"It is {i} + {i}. #### {2 * i}"} for i in range(60)]
    (tmp_path / "data" / "public.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert make_plan(load_config(file)).problems == []


def test_paths_of_public_questions_are_relative_to_the_file(tmp_path: Path) -> None:
    question_file(tmp_path / "q.jsonl")
    (tmp_path / "f.yaml").write_text(
        "method: {name: lada, teacher: a}\npublic: {source: q.jsonl, task: demo-fill, limits: 3}\n"
        "clients: [{name: a, model: 'zoo:gpt2', task: demo-fill, train: x, test: y}]\n"
    )
    with pytest.raises(ValueError, match=r"public\.limits: unknown key\. Did you mean `limit`"):
        load_config(tmp_path / "f.yaml")
    (tmp_path / "f.yaml").write_text((tmp_path / "f.yaml").read_text().replace(", limits: 3", ""))
    experiment = load_config(tmp_path / "f.yaml")
    assert experiment.public is not None and experiment.public.source == str(tmp_path / "q.jsonl")
