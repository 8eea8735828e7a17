"""What would change nothing, or end in a traceback after all the work, is said at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from federations import small
from typer.testing import CliRunner

from h2tune.cli.app import app
from h2tune.comparison.cells import Outcome
from h2tune.vertical.demo import write_demo


def call(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output + done.stderr


@pytest.fixture
def vertical(tmp_path: Path) -> Path:
    return write_demo(tmp_path / "data")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What tells a vertical run from others."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text('{"kind": "vertical"}')
    return folder


@pytest.mark.parametrize(
    "option",
    [["--no-baseline"], ["--baseline"], ["--workers", "3"], ["--tensorboard"], ["--changed", "data"]],
    ids=lambda option: option[0],
)
def test_options_that_a_vertical_run_does_not_know(option: list[str], vertical: Path, tmp_path: Path) -> None:
    code, said = call("run", vertical, "--out", tmp_path / "run", *option)
    assert code == 1 and option[0].removeprefix("--no") in said and "of no use for a vertical federation" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [["--n-train", "3,99"], ["--tune", "0.1,1"], ["--jobs", "2"]], ids=lambda o: o[0])
def test_options_that_a_vertical_comparison_does_not_know(option: list[str], vertical: Path) -> None:
    code, said = call("compare", vertical, *option)
    assert code == 1 and f"{option[0]}: of no use" in said


def test_options_that_vertical_results_do_not_know(run: Path) -> None:
    for words in (["export", run, "--to", "merged"], ["export", run, "--dtype", "float16"],
                  ["predict", run, "--file", "a=b.csv", "--client", "a"]):  # fmt: skip
        code, said = call(*words)
        assert code == 1 and "of no use for a vertical federation" in said


def test_two_files_of_one_party_and_two_files_where_one_is_read(run: Path, tmp_path: Path) -> None:
    for files in (["--file", "bank=a.csv", "--file", "bank=b.csv"], ["--file", "bank=a.csv,bank=b.csv"]):
        code, said = call("predict", run, *files)
        assert code == 1 and "two files of bank: a.csv and b.csv" in said
    code, said = call("predict", tmp_path, "--file", "a.csv", "--file", "b.csv")
    assert code == 1 and "one file at a time, not 2" in said


def test_init_makes_the_folder_that_it_writes_into(tmp_path: Path) -> None:
    for number, kind in enumerate(([], ["--lada"], ["--vertical"])):
        file = tmp_path / f"new-{number}" / "deep" / "federation.yaml"
        assert call("init", file, *kind)[0] == 0 and file.is_file()


def test_a_file_where_a_folder_belongs(vertical: Path, run: Path) -> None:
    for words in (["run", vertical, "--out", vertical], ["export", run, "--out", vertical]):
        code, said = call(*words)
        assert code == 1 and f"{vertical} is a file" in said.replace("\n", "")


def test_a_run_that_has_not_ended_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    (tmp_path / "run.json").write_text("{}")
    code, said = call("report", tmp_path)
    assert code == 1 and "has not come to its end" in said and "--resume" in said


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_file_made_for_kits_is_not_trained_here(command: str, tmp_path: Path) -> None:
    config, unknown = small(clients=3, rounds=1), dict.fromkeys(("model", "train", "test"), "-")
    changes: list[dict[str, str]] = [unknown, {"model": "-"}, {}]
    clients = [c.model_copy(update=change) for c, change in zip(config.clients, changes, strict=True)]
    file = tmp_path / "federation.yaml"
    file.write_text(config.model_copy(update={"clients": clients}).to_yaml())
    code, said = call(command, file, "--out", tmp_path / "out")
    assert code == 1 and not (tmp_path / "out").exists()
    cure = "known at the client only; use h2tune provision, or fill them in"
    assert f'error: c0: model, train and test are "-": {cure}' in said and f'c1: model is "-": {cure}' in said
    assert "c2" not in said


def test_changed_without_resume_and_jobs_below_none(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(small(rounds=1).to_yaml())
    code, said = call("run", tmp_path / "f.yaml", "--out", tmp_path / "run", "--changed", "rounds")
    assert code == 1 and "--changed: of no use for a run that is not resumed" in said
    code, said = call("compare", tmp_path / "f.yaml", "--jobs", "-1")
    assert code == 2 and "--jobs" in said


def test_answers_are_not_written_over_the_questions(run: Path, tmp_path: Path) -> None:
    questions = tmp_path / "q.csv"
    questions.write_text("id\n1\n")
    code, said = call("predict", run, "--file", f"bank={questions}", "--out", tmp_path / "." / "q.csv")
    assert code == 1 and "--out is the file of the questions" in said
    (run / "run.json").unlink()
    code, said = call("predict", run, "--file", questions, "--out", questions)
    assert code == 1 and "--out is the file of the questions" in said and questions.read_text() == "id\n1\n"


def test_two_kinds_of_federation_at_once(tmp_path: Path) -> None:
    for words in (["init", tmp_path / "f.yaml"], ["demo", "--out", tmp_path / "demo"]):
        code, said = call(*words, "--vertical", "--lada")
        assert code == 1 and "--vertical and --lada are two kinds of federation; choose one" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("as_json", [False, True])
def test_a_comparison_says_whose_rate_a_method_does_not_change(
    as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("h2tune.comparison.compare.run_grid", lambda file, cells, *rest: [Outcome(c) for c in cells])
    changes = {"local": {"learning_rate": 0.05}, "ffa": {"learning_rate": 0.05}}
    config = small(rounds=1, method="fedit", methods=changes)
    clients = [c.model_copy(update={"learning_rate": 0.001} if c.name == "c0" else {}) for c in config.clients]
    (tmp_path / "f.yaml").write_text(config.model_copy(update={"clients": clients}).to_yaml())
    words = ["compare", tmp_path / "f.yaml", "--methods", "local,fedit", "--seeds", "1", "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, [str(word) for word in [*words, *(["--json"] if as_json else [])]])
    told = "warning: methods.local.learning_rate is without effect for c0: "
    assert (done.stderr if as_json else done.stdout).startswith(told) and "ffa" not in done.output
    if as_json:
        json.loads(done.stdout)
