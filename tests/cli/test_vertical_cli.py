"""The command line on a vertical federation, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from h2tune.cli import vertical as commands
from h2tune.cli.app import app
from h2tune.vertical.demo import write_demo
from h2tune.vertical.methods import METHODS


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated federation, trained with `h2tune run`."""
    folder = tmp_path_factory.mktemp("cli")
    file = write_demo(folder / "data")
    file.write_text(
        file.read_text().replace("rounds: 40", "rounds: 4\nmethod: {warmup: 2}\ntraining: {dim: 8, hidden: 16}")
    )
    shown = call("run", file, "--out", folder / "run", "--quiet")
    assert "balanced accuracy" in shown and "report.html" in shown
    return folder


def test_plan_report_export_predict(demo: Path):
    assert "150 aligned people" in call("plan", demo / "data" / "vertical.yaml")
    assert "report.html" in call("report", demo / "run")
    call("export", demo / "run", "--client", "bank,shop", "--out", demo / "part")
    files = f"bank={demo / 'data' / 'new_bank.csv'},shop={demo / 'data' / 'new_shop.csv'}"
    lines = call("predict", demo / "part", "--file", files).splitlines()
    assert len(lines) == 20 and json.loads(lines[0])["parties"] == ["bank", "shop"]


def test_compare(demo: Path):
    shown = call(
        "compare",
        demo / "data" / "vertical.yaml",
        "--methods",
        "local,splitnn",
        "--seeds",
        1,
        "--out",
        demo / "compare",
    )
    assert "splitnn" in shown and "local" in shown
    assert " to " not in shown  # one seed has no interval


def test_compare_takes_all_vertical_methods_unless_some_are_named(demo: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []

    def note(config: object, names: list[str], *rest: object) -> dict[str, object]:
        asked.append(names)
        return {"name": "demo", "quantity": "balanced", "seeds": 5, "methods": []}

    monkeypatch.setattr(commands, "compare_methods", note)
    call("compare", demo / "data" / "vertical.yaml")
    call("compare", demo / "data" / "vertical.yaml", "--methods", "local")
    assert asked == [list(METHODS), ["local"]]
    assert "there is no vertical method" not in call(
        "compare", demo / "data" / "vertical.yaml", "--methods", "", code=1
    )
    help_ = " ".join(call("compare", "--help").replace("│", " ").split())
    assert "By default local, h2tune-unshared, h2tune, and the file's own; of a vertical file all." in help_


def test_a_key_that_is_wrong_hides_no_mistake_in_the_data(demo: Path, tmp_path: Path):
    plain = yaml.safe_load((demo / "data" / "vertical.yaml").read_text())
    wrong = {"rondes": 2, "rounds": 0, "method": {"name": "proto-evlf", "borrow": 2}}
    for party in plain["parties"]:
        party |= {kind: str(demo / "data" / party[kind]) for kind in ("train", "test")}
    file = tmp_path / "vertical.yaml"
    plain["parties"][1] |= {"train": "nowhere.tsv", "encodr": 1}
    file.write_text(yaml.safe_dump(plain | wrong))
    shown = call("plan", file, code=1)
    assert shown.count("error: ") == 6 and "aligned" not in shown
    for said in ("rondes: unknown key", "rounds: should be 1 or more", "method.borrow: should be 1.0 or less",
                 "clinic: encodr: unknown key", "no vertical method 'proto-evlf'", f"no file {tmp_path / 'nowhere.tsv'}"):  # fmt: skip
        assert said in shown
    del plain["parties"][1]["encodr"]
    plain["parties"][1]["train"] = str(demo / "data" / "clinic.tsv")
    file.write_text(yaml.safe_dump(plain | {"rounds": 0}))
    assert call("plan", file, code=1).splitlines() == ["error: rounds: should be 1 or more, not 0"]
    file.write_text(yaml.safe_dump(plain | {"parties": plain["parties"][:1] * 2, "rounds": 0}))
    assert "rounds: should be 1 or more" in call("plan", file, code=1)  # nothing is left without the mistakes


def test_mistakes_end_in_one_line(demo: Path):
    shown = call("run", demo / "data" / "vertical.yaml", "--out", demo / "run", code=1)
    assert "holds a run already" in shown and "Traceback" not in shown
    shown = call("predict", demo / "run", "--file", "bank.csv", code=1)
    assert "write party=file" in shown


def test_init_and_kits(tmp_path: Path, demo: Path):
    call("init", tmp_path / "vertical.yaml", "--vertical")
    assert "parties:" in (tmp_path / "vertical.yaml").read_text()
    pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install -e '.[network]'")
    shown = call("provision", demo / "data" / "vertical.yaml", "--out", tmp_path / "kits")
    assert "h2tune server" in shown and (tmp_path / "kits" / "clinic" / "kit.json").is_file()
    assert "refused from now on: shop" in call(
        "provision", demo / "data" / "vertical.yaml", "--out", tmp_path / "kits", "--revoke", "shop"
    )
